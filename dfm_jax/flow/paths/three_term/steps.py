"""Sampler steps of the three-term path (mathematics.md C.4, E.1).

A step goes from t to s. k1, k2 and k3 are the shares of data, uniform noise and mask; `k1_t` is the share at t. Every
step decides from uniforms which tokens may need x_1, before the model runs.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.samplers.grid import TimeGrid
from dfm_jax.flow.samplers.step import FirstOfTwoClocks, Knots, Plan, Row, Step, deltas


@dataclasses.dataclass(frozen=True)
class _ThreeTermStep(Step):
    """path: the ThreeTermProbPath that gives the shares at kappa and sigma. The clock is the sampler's."""

    path: Any
    leaves: ClassVar[tuple[str, ...]] = ("path",)

    def shares(self, knots: Knots) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """(k1, k2, k3) at the N starts and at the N ends of the steps, (N,) float64."""
        k = self.path.coefficients(knots.kappa, knots.sigma)
        return tuple(x[:-1] for x in k), tuple(x[1:] for x in k)


@dataclasses.dataclass(frozen=True)
class ThreeTermExact(_ThreeTermStep):
    """The one-way process for a fixed x_1: stay with J = k3_s / k3_t, go to x_1 with k1_s - J k1_t, else to any token.

    It turns C_t(.|x_1) into C_s(.|x_1) exactly. The probabilities do not depend on x_1.
    """

    words: int = dataclasses.field(default=1, init=False)
    fresh: str = dataclasses.field(default="data", init=False)

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        before, after = self.shares(knots)
        stay = after[2] / before[2]
        jump = np.clip(after[0] - stay * before[0], 0.0, 1.0)
        noise = np.clip(after[1] - stay * before[1], 0.0, 1.0 - jump)
        return Plan(grid.starts, {"jump": jump, "leave": jump + noise}, knots.index, jump)

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        return u[0] < row["jump"]

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        return jnp.where(u[0] < row["jump"], x_1, jnp.where(u[0] < row["leave"], y, z))

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        noise = row["leave"] - row["jump"]
        return row["jump"] * to_x_1 + noise * data_law(source) + (1 - row["leave"]) * stay


@dataclasses.dataclass(frozen=True)
class ThreeTermEuler(FirstOfTwoClocks, _ThreeTermStep):
    """The reference's Euler step: leave z with probability 1 - exp(-h rate); the step to t = 1 always goes to x_1.

    The rates are a_1 to x_1 and a_2 / V to each token other than z. The first of the two clocks to ring decides.
    """

    words: int = dataclasses.field(default=2, init=False)
    fresh: str = dataclasses.field(default="data_others", init=False)

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        kappa, sigma, g = knots.kappa[:-1], knots.sigma[:-1], self.path.noise
        slope = knots.h * knots.rate * sigma  # h d kappa / dt
        left = 1 - g * kappa * sigma
        to_x_1 = np.where(knots.last, np.inf, slope * left / sigma)
        to_noise = np.where(knots.last, 0.0, slope * g * sigma * (1 - g * kappa**2) / left)
        return Plan(grid.starts, {"to_x_1": to_x_1, "to_noise": to_noise}, knots.index, -np.expm1(-to_x_1))

    def clocks(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> tuple[jax.Array, jax.Array]:
        others = jnp.where(z == source.mask_id, 1.0, 1.0 - 1.0 / source.vocab_size)
        return -jnp.log1p(-u[0]) / row["to_x_1"], -jnp.log1p(-u[1]) / (row["to_noise"] * others)

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        if np.isinf(row["to_x_1"]):
            return to_x_1
        rates = (row["to_x_1"] * to_x_1 + row["to_noise"] * data_law(source)) * (1 - stay)
        total = rates.sum(-1, keepdims=True)
        share = np.divide(rates, total, out=np.zeros_like(rates), where=total > 0)
        return np.exp(-total) * stay - np.expm1(-total) * share


@dataclasses.dataclass(frozen=True)
class ThreeTermMaximal(_ThreeTermStep):
    """The maximal coupling, with the fewest jumps: stay with min(1, C_s(z) / C_t(z)), else draw from [C_s - C_t]_+.

    While the noise share grows, only masks jump, to x_1 or to a uniform token. While it shrinks, masks and wrong tokens
    jump, all to x_1. A token that is x_1 never jumps.
    """

    words: int = dataclasses.field(default=2, init=False)
    fresh: str = dataclasses.field(default="data", init=False)

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        before, after = self.shares(knots)
        gain = np.maximum(after[1] - before[1], 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.where(before[1] > 0, np.maximum(1.0 - after[1] / before[1], 0.0), 0.0)
        mask = 1.0 - after[2] / before[2]
        grown = after[0] - before[0]
        target = np.divide(grown, grown + gain, out=np.ones_like(grown), where=grown + gain > 0)  # 0 / 0 at a held time
        return Plan(grid.starts, {"mask": mask, "off": off, "target": target}, knots.index, np.maximum(mask, off))

    def _leaves(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        return u[0] < jnp.where(z == source.mask_id, row["mask"], row["off"])

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        return self._leaves(row, z, u, source) & (u[1] < row["target"])

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        return jnp.where(self._leaves(row, z, u, source), jnp.where(u[1] < row["target"], x_1, y), z)

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        mask = np.eye(source.num_states)[source.mask_id][:, None, None]
        leave = row["mask"] * mask + row["off"] * (1 - mask)
        target = row["target"] * to_x_1 + (1 - row["target"]) * data_law(source)
        return leave * target + (1 - leave) * stay


@dataclasses.dataclass(frozen=True)
class ThreeTermAncestral(_ThreeTermStep):
    """The time-reversal step T(x | z, x_1) = q(z | x) C_s(x | x_1) / C_t(z | x_1): the process of the tight bound.

    q keeps a token with probability k1_t / k1_s and otherwise redraws it from r(z) = pi_t(z) - (k1_t / k1_s) pi_s(z),
    where pi is the law without its data term. A token leaves with probability r(z) / C_t(z|x_1). It then goes to x_1
    with k1_s, to the mask with k3_s, else to a uniform token.
    """

    words: int = dataclasses.field(default=2, init=False)
    fresh: str = dataclasses.field(default="data", init=False)

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        before, after = self.shares(knots)
        kept = before[0] / after[0]
        new_mask, new_data = before[2] - kept * after[2], (before[1] - kept * after[1]) / source.vocab_size
        each = before[1] / source.vocab_size
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.where(each > 0, np.clip(new_data / each, 0.0, 1.0), 0.0)
            on = np.where(each > 0, np.clip(new_data / (before[0] + each), 0.0, 1.0), 0.0)
        scalars = {
            "mask": np.clip(new_mask / before[2], 0.0, 1.0),
            "off": off,
            "on": on,
            "data": after[0],
            "remask": after[0] + after[2],
        }
        return Plan(grid.starts, scalars, knots.index, np.maximum(scalars["mask"] * after[0], off))

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        masked = z == source.mask_id
        leaves = u[0] < jnp.where(masked, row["mask"], row["off"])
        return leaves & (~masked | (u[1] < row["data"]))

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        masked = z == source.mask_id
        leave = jnp.where(masked, row["mask"], jnp.where(z == x_1, row["on"], row["off"]))
        mask = jnp.full(z.shape, source.mask_id, z.dtype)
        away = jnp.where(u[1] < row["data"], x_1, jnp.where(u[1] < row["remask"], mask, y))
        # A masked token draws x_1 only if it goes there. Any other token draws x_1 whenever it might leave.
        return jnp.where(u[0] < leave, away, z)

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        eye = np.eye(source.num_states)
        mask, same = eye[source.mask_id], eye[:, :, None]
        leave = row["mask"] * mask[:, None, None] + (1 - mask)[:, None, None] * (
            row["on"] * same + row["off"] * (1 - same)
        )
        away = row["data"] * to_x_1 + (row["remask"] - row["data"]) * mask + (1 - row["remask"]) * data_law(source)
        return leave * away + (1 - leave) * stay


STEPS = {
    "exact": ThreeTermExact,
    "euler": ThreeTermEuler,
    "maximal": ThreeTermMaximal,
    "ancestral": ThreeTermAncestral,
}


def data_law(source: Any) -> np.ndarray:
    """The uniform law over the data tokens of `source`, (S,) float64; the mask has 0."""
    law = np.ones(source.num_states)
    if source.mask_id is not None:
        law[source.mask_id] = 0.0
    return law / law.sum()
