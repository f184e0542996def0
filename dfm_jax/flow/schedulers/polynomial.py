"""Schedulers that are powers and cubics of t (mathematics.md A, first rows)."""

import dataclasses
from typing import Any

from dfm_jax.flow.schedulers.base import Scheduler, one_minus_power, require_positive, slope_of_power


@dataclasses.dataclass(frozen=True)
class CondOTScheduler(Scheduler):
    """kappa = t, sigma = r, lambda = 1/r: the linear (conditional optimal transport) scheduler."""

    def formulas(self, xp: Any, t: Any, r: Any) -> tuple[Any, Any, Any]:
        return t, r, xp.ones_like(t)

    def time_from_kappa(self, xp: Any, kappa: Any) -> Any:
        return kappa

    def remainder_from_sigma(self, xp: Any, sigma: Any) -> Any:
        return sigma


@dataclasses.dataclass(frozen=True)
class PolynomialConvexScheduler(Scheduler):
    """kappa = t^n, sigma = -expm1(n log t), d kappa = n t^(n-1), n > 0.

    This is not MD4's `polyN`, which has sigma = r^N and is `OneMinusPowerScheduler` here. For n < 1 the rate is
    infinite at t = 0, but integrable. Raises ValueError unless n > 0.
    """

    n: float = 1.0

    def __post_init__(self) -> None:
        require_positive("n", self.n)

    def formulas(self, xp: Any, t: Any, r: Any) -> tuple[Any, Any, Any]:
        return t**self.n, one_minus_power(xp, t, r, self.n), slope_of_power(xp, t, self.n)

    def time_from_kappa(self, xp: Any, kappa: Any) -> Any:
        return kappa ** (1 / self.n)

    def remainder_from_sigma(self, xp: Any, sigma: Any) -> Any:
        return -xp.expm1(xp.log1p(-sigma) / self.n)


@dataclasses.dataclass(frozen=True)
class OneMinusPowerScheduler(Scheduler):
    """sigma = r^p, kappa = -expm1(p log r), d kappa = p r^(p-1), lambda = p/r, p > 0 (MD4's `polyP`).

    Raises ValueError unless p > 0.
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        require_positive("p", self.p)

    def formulas(self, xp: Any, t: Any, r: Any) -> tuple[Any, Any, Any]:
        return one_minus_power(xp, r, t, self.p), r**self.p, slope_of_power(xp, r, self.p)

    def rate(self, xp: Any, t: Any, r: Any) -> Any:
        ended = r <= 0
        return xp.where(ended, xp.inf, self.p / xp.where(ended, xp.ones_like(r), r))

    def time_from_kappa(self, xp: Any, kappa: Any) -> Any:
        return -xp.expm1(xp.log1p(-kappa) / self.p)

    def remainder_from_sigma(self, xp: Any, sigma: Any) -> Any:
        return sigma ** (1 / self.p)


@dataclasses.dataclass(frozen=True)
class CubicScheduler(Scheduler):
    """kappa = -2t^3 + 3t^2 + a (t^3 - 2t^2 + t) + b (t^3 - t^2), a = kappa'(0), b = kappa'(1).

    (a, b) = (0, 2) is t^2; (0, 0) is smoothstep. sigma is the same polynomial in r with a and b exchanged.
    Raises ValueError for slopes that make kappa decrease somewhere.
    """

    a: float = 0.0
    b: float = 0.0

    def __post_init__(self) -> None:
        a, b = self.a, self.b
        curvature, slope = 3 * (a + b - 2), 2 * (3 - 2 * a - b)
        lowest = min(max(-slope / (2 * curvature), 0.0), 1.0) if curvature > 0 else 0.0
        if not (a >= 0 and b >= 0 and (curvature * lowest + slope) * lowest + a >= -1e-12):
            raise ValueError(f"a = {a!r}, b = {b!r}: expected end slopes >= 0 that keep kappa non-decreasing on [0, 1]")

    def formulas(self, xp: Any, t: Any, r: Any) -> tuple[Any, Any, Any]:
        a, b = self.a, self.b
        kappa, sigma = _cubic(t, a, b), _cubic(r, b, a)
        early = a + t * (2 * (3 - 2 * a - b) + t * 3 * (a + b - 2))
        late = b + r * (2 * (3 - 2 * b - a) + r * 3 * (a + b - 2))
        return kappa, sigma, xp.where(t <= 0.5, early, late)


def _cubic(x: Any, a: float, b: float) -> Any:
    return x * (a + x * ((3 - 2 * a - b) + x * (a + b - 2)))
