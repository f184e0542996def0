"""Schedulers defined by the total noise -log kappa; they do not quite reach their end points (mathematics.md A).

Here kappa_0 > 0 or kappa_1 < 1. Then p_0 is not the source or p_1 is not the data, and a bound needs further terms.
These schedulers serve models that other programs trained. Train with a scheduler that has exact end points.
"""

import dataclasses
import math
from typing import Any

from dfm_jax.flow.schedulers.base import Scheduler, require_positive


@dataclasses.dataclass(frozen=True)
class LogLinearScheduler(Scheduler):
    """kappa = 1 - (1-eps) r, sigma = (1-eps) r, lambda = 1/r: MDLM's and UDLM's log-linear noise; kappa_0 = eps."""

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps = {self.eps!r}: expected values in [0, 1)")

    def formulas(self, xp: Any, t: Any, r: Any) -> tuple[Any, Any, Any]:
        scale = 1 - self.eps
        return self.eps + scale * t, scale * r, scale * xp.ones_like(t)

    def time_from_kappa(self, xp: Any, kappa: Any) -> Any:
        return (kappa - self.eps) * (1 / (1 - self.eps))

    def remainder_from_sigma(self, xp: Any, sigma: Any) -> Any:
        return sigma * (1 / (1 - self.eps))


@dataclasses.dataclass(frozen=True)
class GeometricScheduler(Scheduler):
    """kappa = exp(-n), n = smin^t smax^r, d kappa = kappa n l, l = log(smax/smin), lambda = l n / expm1(n) (SEDD)."""

    smin: float = 1e-4
    smax: float = 20.0

    def __post_init__(self) -> None:
        require_positive("smin", self.smin)
        require_positive("smax", self.smax)
        if self.smin >= self.smax:
            raise ValueError(f"smin = {self.smin!r}: expected values below smax={self.smax!r}")

    def formulas(self, xp: Any, t: Any, r: Any) -> tuple[Any, Any, Any]:
        span = math.log(self.smax / self.smin)
        noise = xp.where(t <= 0.5, self.smax * xp.exp(-span * t), self.smin * xp.exp(span * r))
        kappa = xp.exp(-noise)
        return kappa, -xp.expm1(-noise), kappa * noise * span

    def time_from_kappa(self, xp: Any, kappa: Any) -> Any:
        return (math.log(self.smax) - xp.log(-xp.log(kappa))) * (1 / math.log(self.smax / self.smin))

    def remainder_from_sigma(self, xp: Any, sigma: Any) -> Any:
        return (xp.log(-xp.log1p(-sigma)) - math.log(self.smin)) * (1 / math.log(self.smax / self.smin))
