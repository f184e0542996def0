"""Corrector steps of the mixture path: they renoise and step again, to repair earlier errors (mathematics.md E.1)."""

import dataclasses
from typing import Any

import numpy as np

from dfm_jax.flow.samplers.grid import TimeGrid
from dfm_jax.flow.samplers.jumps import JumpThenRenoise
from dfm_jax.flow.samplers.step import Knots, Plan
from dfm_jax.flow.time import Time


@dataclasses.dataclass(frozen=True)
class Corrector(JumpThenRenoise):
    """An `Exact` step from t to s, then `iterations` times: renoise from s back to v, and step from v to s again.

    kappa_v = kappa_s - strength (kappa_s - kappa_t). Renoising keeps a token with probability kappa_v / kappa_s and
    else draws y ~ p, which turns C_s into C_v. The exact step turns it back, so a correction preserves the law at s. It
    goes back only by a share `strength` of the step, because the step from v to s has an error of second order in its
    length. Each iteration costs one more model evaluation per step. The step to s = 1 has no correction.
    Raises ValueError unless iterations >= 0 and 0 < strength <= 1.
    """

    iterations: int = 1
    strength: float = 0.5

    def __post_init__(self):
        if self.iterations < 0:
            raise ValueError(f"iterations = {self.iterations}: expected an integer >= 0")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength = {self.strength}: expected 0 < strength <= 1")

    @property
    def renoises(self) -> bool:
        return True

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        kappa_t, kappa_s, sigma_s = knots.kappa[:-1], knots.kappa[1:], knots.sigma[1:]
        at_v = scheduler.float64_inverse(kappa_s - self.strength * (kappa_s - kappa_t))
        kappa_v, sigma_v, *_ = scheduler.float64(at_v)
        nothing = np.zeros(grid.steps)
        # No correction at t = 1: the last step would then start from v, a worse state than t.
        back = np.where(knots.last, 0.0, 1.0 - kappa_v / kappa_s)
        again = np.where(knots.last, 0.0, 1.0 - sigma_s / sigma_v)
        blocks = [(*grid.starts, knots.jump, nothing)]
        blocks += [(*at_v, nothing, back), (*at_v, again, nothing)] * self.iterations
        t, r, jump, renoise = (np.stack(column, 1).reshape(-1) for column in zip(*blocks, strict=True))
        index = np.full((grid.steps, len(blocks)), -1)
        index[:, -1] = knots.index
        return Plan(Time(t, r), {"jump": jump, "renoise": renoise}, index.reshape(-1), jump)
