"""Steps of the mixture path that go back and forth, to mend what earlier ones left (mathematics.md, E.1)."""

import dataclasses
from typing import Any

import numpy as np

from dfm_jax.flow.samplers.grid import TimeGrid
from dfm_jax.flow.samplers.jumps import JumpThenRenoise
from dfm_jax.flow.samplers.step import Knots, Plan
from dfm_jax.flow.time import Time


@dataclasses.dataclass(frozen=True)
class Corrector(JumpThenRenoise):
    """Exact-kappa t -> s, then `iterations` times: renoise from s back to v and step v -> s again, unless s = 1.

    kappa_v = kappa_s - strength (kappa_s - kappa_t), 0 < strength <= 1: the noising kernel (keep with probability
    kappa_v / kappa_s, else y ~ p) carries C_s to C_v and the exact step carries it back, so a correction preserves the
    law at s. It goes back by a share of the step, because v -> s has itself an error of second order in its length.
    One more model evaluation per iteration and step.
    """

    iterations: int = 1
    strength: float = 0.5

    def __post_init__(self):
        if self.iterations < 0:
            raise ValueError(f"iterations={self.iterations}: accepted an integer >= 0")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength}: accepted 0 < strength <= 1")

    @property
    def renoises(self) -> bool:
        return True

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        kappa_t, kappa_s, sigma_s = knots.kappa[:-1], knots.kappa[1:], knots.sigma[1:]
        at_v = scheduler.float64_inverse(kappa_s - self.strength * (kappa_s - kappa_t))
        kappa_v, sigma_v, *_ = scheduler.float64(at_v)
        nothing = np.zeros(grid.steps)
        # Not at t = 1: there a correction would put the last step off to a worse start.
        back = np.where(knots.last, 0.0, 1.0 - kappa_v / kappa_s)
        again = np.where(knots.last, 0.0, 1.0 - sigma_s / sigma_v)
        blocks = [(*grid.starts, knots.jump, nothing)]
        blocks += [(*at_v, nothing, back), (*at_v, again, nothing)] * self.iterations
        t, r, jump, renoise = (np.stack(column, 1).reshape(-1) for column in zip(*blocks, strict=True))
        index = np.full((grid.steps, len(blocks)), -1)
        index[:, -1] = knots.index
        return Plan(Time(t, r), {"jump": jump, "renoise": renoise}, index.reshape(-1), jump)
