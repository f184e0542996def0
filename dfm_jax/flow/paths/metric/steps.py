"""Sampler steps of the metric path: the kinetic-optimal jump and the maximal coupling (mathematics.md E.1).

Both need a row of distances for every position that may jump, and compute them in blocks. The step that arrives at
t = 1 gives x_1.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow import categorical
from dfm_jax.flow.paths.metric.beta import beta_float64
from dfm_jax.flow.samplers.grid import TimeGrid
from dfm_jax.flow.samplers.step import Knots, Plan, Row, Step, deltas


@dataclasses.dataclass(frozen=True, eq=False)
class _MetricStep(Step):
    """path: the MetricProbPath that gives distances and beta. The clock is the sampler's."""

    path: Any
    leaves: ClassVar[tuple[str, ...]] = ("path",)
    words: int = dataclasses.field(default=3, init=False)
    fresh: str = dataclasses.field(default="none", init=False)

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        beta, slope = beta_float64(self.path.beta, knots.kappa, knots.sigma)
        start, end = beta[:-1], np.where(knots.last, 0.0, beta[1:])
        step = np.where(knots.last, 0.0, self.increment(knots, start, end, slope[:-1]))
        scalars = {"beta": start, "end": end, "step": step, "last": knots.last}
        return Plan(grid.starts, scalars, knots.index, np.ones(grid.steps))

    def increment(self, knots: Knots, start: np.ndarray, end: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """The length of each step in beta (N,) float64, which multiplies a rate per unit of beta."""
        return end - start

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        # A rate per unit of beta is at most the largest distance, and log C falls by less than that.
        most = -jnp.expm1(-row["step"] * jnp.asarray(self.path.farthest, jnp.result_type(row["step"]))) * (1 + 1e-5)
        return (u[0] < most) | (row["last"] > 0)

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        def block(z: jax.Array, x_1: jax.Array, u: jax.Array) -> jax.Array:
            apart = self.path.distances(x_1)
            leave, masses = self.outcome(row, apart, z)
            words = (u[..., 1:] * 2.0**32).astype(jnp.uint32).reshape(-1, 2)
            target = categorical.pick(masses.reshape(-1, masses.shape[-1]), words).reshape(z.shape)
            return jnp.where((u[..., 0] < leave) & (masses.sum(axis=-1) > 0), target, z)

        moved = self.path.in_blocks(block, z, x_1, jnp.moveaxis(u, 0, -1), per_row=3)
        might = self.needs_x_1(row, z, u, source)
        return jnp.where(row["last"] > 0, x_1, jnp.where(might, moved, z))

    def outcome(self, row: Row, apart: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The probability of leaving z (...) and the masses of the targets (..., V); `apart` is d(., x_1) (..., V)."""
        raise NotImplementedError

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        if row["last"] > 0:
            return to_x_1
        ids = jnp.arange(source.num_states, dtype=jnp.int32)
        z, x_1 = (jnp.asarray(i, jnp.int32) for i in np.meshgrid(ids, ids, indexing="ij"))
        single = {name: jnp.asarray(value, jnp.result_type(float)) for name, value in row.items()}
        apart = self.path.distances(x_1, jnp.result_type(float))
        leave, masses = (np.asarray(v, np.float64) for v in self.outcome(single, apart, z))
        total = masses.sum(axis=-1, keepdims=True)
        target = np.divide(masses, total, out=np.zeros_like(masses), where=total > 0)
        leave = np.where(total[..., 0] > 0, leave, 0.0)[..., None]
        return leave * target + (1 - leave) * stay


@dataclasses.dataclass(frozen=True, eq=False)
class MetricKineticOptimal(_MetricStep):
    """Jump with probability 1 - exp(-sum H) to x ~ H, always to a token closer to x_1.

    H(x) = (beta_s - beta_t) C_t(x|x_1) [d(z, x_1) - d(x, x_1)]_+. The step integrates beta, so the first step moves
    tokens even if the slope of beta is infinite at t = 0.
    """

    def outcome(self, row: Row, apart: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        law = jax.nn.softmax(-row["beta"] * apart, axis=-1)
        closer = jnp.maximum(jnp.take_along_axis(apart, z[..., None], axis=-1) - apart, 0.0)
        masses = law * closer
        return -jnp.expm1(-row["step"] * masses.sum(axis=-1)), masses


@dataclasses.dataclass(frozen=True, eq=False)
class MetricEuler(MetricKineticOptimal):
    """As `MetricKineticOptimal`, with h d beta / dt at the step's start (FUDOKI, URSA); 0 where that is infinite."""

    def increment(self, knots: Knots, start: np.ndarray, end: np.ndarray, slope: np.ndarray) -> np.ndarray:
        return knots.h * knots.rate * knots.sigma[:-1] * slope


@dataclasses.dataclass(frozen=True, eq=False)
class MetricMaximal(_MetricStep):
    """The maximal coupling: stay with min(1, C_s(z) / C_t(z)), else draw from [C_s - C_t]_+.

    It makes the fewest jumps and gives C_s exactly.
    """

    def outcome(self, row: Row, apart: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        before, after = (jax.nn.log_softmax(-row[name] * apart, axis=-1) for name in ("beta", "end"))
        ratio = jnp.take_along_axis(after - before, z[..., None], axis=-1)[..., 0]
        return -jnp.expm1(jnp.minimum(ratio, 0.0)), jnp.maximum(jnp.exp(after) - jnp.exp(before), 0.0)


STEPS = {"kinetic_optimal": MetricKineticOptimal, "euler": MetricEuler, "maximal": MetricMaximal}
