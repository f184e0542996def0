"""The exact step of paths on which every token has its own schedule. It draws x_1 before it decides to jump."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.samplers.grid import TimeGrid
from dfm_jax.flow.samplers.step import Knots, Plan, Row, Step, deltas


@dataclasses.dataclass(frozen=True, eq=False)
class TokenExact(Step):
    """x = x_1 with probability 1 - sigma_s(x_1) / sigma_t(x_1), else z: the conditional marginal C_s exactly.

    This is also the maximal coupling of C_t and C_s. x_1 is drawn where the fastest token of the vocabulary would jump.
    """

    path: Any
    leaves: ClassVar[tuple[str, ...]] = ("path",)
    words: int = dataclasses.field(default=1, init=False)
    fresh: str = dataclasses.field(default="none", init=False)

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        return Plan(grid.starts, self.path.step_scalars(knots), knots.index, knots.jump)

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        return u[0] < self.path.most(row)

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        return jnp.where(u[0] < self.path.jump(jnp.minimum(x_1, source.vocab_size - 1), row), x_1, z)

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        ids = jnp.arange(source.num_states, dtype=jnp.int32)
        single = {name: jnp.asarray(value, jnp.float32) for name, value in row.items()}
        jump = np.asarray(self.path.jump(jnp.minimum(ids, source.vocab_size - 1), single), np.float64)[None, :, None]
        return jump * to_x_1 + (1 - jump) * stay


STEPS = {"exact": TokenExact, "maximal": TokenExact}
