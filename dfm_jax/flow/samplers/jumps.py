"""Steps of the mixture path that jump to x_1 and then renoise, each with a fixed probability (mathematics.md E.1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.samplers.grid import TimeGrid
from dfm_jax.flow.samplers.step import DivFree, Knots, Plan, Row, Step, deltas, source_law


@dataclasses.dataclass(frozen=True)
class JumpThenRenoise(Step):
    """T(x | z, x_1) = (1 - b) [a delta_{x_1} + (1 - a) delta_z] + b p, with a = `jump`, b = `renoise`."""

    @property
    def renoises(self) -> bool:
        """Whether b may be above 0."""
        return False

    @property
    def words(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 2 if self.renoises else 1

    @property
    def fresh(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "source" if self.renoises else "none"

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        jumps = u[0] < row["jump"]
        return jumps & ~(u[1] < row["renoise"]) if self.renoises else jumps

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        moved = jnp.where(u[0] < row["jump"], x_1, z)
        return jnp.where(u[1] < row["renoise"], y, moved) if self.renoises else moved

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        a, b = row["jump"], row["renoise"] if self.renoises else 0.0
        return (1 - b) * (a * to_x_1 + (1 - a) * stay) + b * source_law(source)


@dataclasses.dataclass(frozen=True)
class Exact(JumpThenRenoise):
    """The exact step, and the default: x = x_1 with probability 1 - sigma_s / sigma_t, else z.

    For a fixed x_1 the marginal is C_s exactly. For the mask source this is MD4's ancestral sampler. In the step to
    t = 1 every token jumps. A grid that ends earlier leaves the state as it is.
    """

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        return Plan(grid.starts, {"jump": knots.jump}, knots.index, knots.jump)


@dataclasses.dataclass(frozen=True)
class Euler(JumpThenRenoise):
    """The reference's Euler step: x = x_1 with probability 1 - exp(-h lambda_t), and always in the step to t = 1.

    Its error is of order h for the mask source and O(h log 1/h) for others, as too few tokens jump near t = 1
    (mathematics.md E.1).
    """

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        jump = np.where(knots.last, 1.0, -np.expm1(-knots.h * knots.rate))
        return Plan(grid.starts, {"jump": jump}, knots.index, jump)


@dataclasses.dataclass(frozen=True)
class TwoStage(JumpThenRenoise):
    """Jump beyond kappa_s to k_u, then renoise back to kappa_s: the divergence-free corrector c = `div_free`, exactly.

    k_u = min(1, kappa_s (kappa_s / kappa_t)^c), and 1 where kappa_t = 0 < c. a = (k_u - kappa_t) / (1 - kappa_t) and
    b = 1 - kappa_s / k_u. To first order in h the rates are (1 + c) lambda to x_1 and c mu to y ~ p. The conditional
    marginal is exact, also in the steps from t = 0 and to t = 1. c >= 0 is a number or a function of t; 0 is `Exact`.
    """

    div_free: DivFree = 0.0

    @property
    def renoises(self) -> bool:
        return True

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        kappa_t, kappa_s, sigma_t = knots.kappa[:-1], knots.kappa[1:], knots.sigma[:-1]
        c = knots.corrector(self.div_free)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            beyond = kappa_s * np.where(kappa_t > 0, kappa_s / kappa_t, np.inf) ** c
        k_u = np.where(c > 0, np.minimum(1.0, beyond), kappa_s)
        jump = np.where(c > 0, (k_u - kappa_t) / sigma_t, knots.jump)
        renoise = np.where(c > 0, 1.0 - kappa_s / k_u, 0.0)
        scalars = {"jump": np.clip(jump, 0.0, 1.0), "renoise": renoise}
        return Plan(grid.starts, scalars, knots.index, scalars["jump"] * (1.0 - renoise))
