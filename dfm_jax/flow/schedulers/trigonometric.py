"""The schedulers that papers call cosine, each under its own name, and kinetic-optimal ones (mathematics.md A, C.3)."""

import dataclasses
import math
from typing import Any

from dfm_jax.flow.schedulers.base import Scheduler

HALF_PI = math.pi / 2


@dataclasses.dataclass(frozen=True)
class CosineMD4Scheduler(Scheduler):
    """kappa = 1 - cos(pi t/2) = 2 sin^2(pi t/4), sigma = sin(pi r/2): the cosine of MD4 and MaskGIT, slow at t = 0."""

    def formulas(self, xp: Any, t: Any, r: Any) -> tuple[Any, Any, Any]:
        return 2 * xp.sin(HALF_PI / 2 * t) ** 2, xp.sin(HALF_PI * r), HALF_PI * xp.sin(HALF_PI * t)

    def time_from_kappa(self, xp: Any, kappa: Any) -> Any:
        return xp.arcsin(xp.sqrt(0.5 * kappa)) * (2 / HALF_PI)

    def remainder_from_sigma(self, xp: Any, sigma: Any) -> Any:
        return xp.arcsin(sigma) * (1 / HALF_PI)


@dataclasses.dataclass(frozen=True)
class SineScheduler(Scheduler):
    """kappa = sin(pi t/2), sigma = 2 sin^2(pi r/4), d kappa = (pi/2) sin(pi r/2): MDLM's `cosine`, slow at t = 1."""

    def formulas(self, xp: Any, t: Any, r: Any) -> tuple[Any, Any, Any]:
        return xp.sin(HALF_PI * t), 2 * xp.sin(HALF_PI / 2 * r) ** 2, HALF_PI * xp.sin(HALF_PI * r)

    def time_from_kappa(self, xp: Any, kappa: Any) -> Any:
        return xp.arcsin(kappa) * (1 / HALF_PI)

    def remainder_from_sigma(self, xp: Any, sigma: Any) -> Any:
        return xp.arcsin(xp.sqrt(0.5 * sigma)) * (2 / HALF_PI)


@dataclasses.dataclass(frozen=True)
class SineSquaredScheduler(Scheduler):
    """kappa = sin^2(pi t/2), sigma = sin^2(pi r/2): MDLM's `cosinesqr`; kinetic-optimal for the mask source."""

    def formulas(self, xp: Any, t: Any, r: Any) -> tuple[Any, Any, Any]:
        slope = HALF_PI * xp.sin(math.pi * xp.minimum(t, r))
        return xp.sin(HALF_PI * t) ** 2, xp.sin(HALF_PI * r) ** 2, slope

    def time_from_kappa(self, xp: Any, kappa: Any) -> Any:
        return xp.arcsin(xp.sqrt(kappa)) * (1 / HALF_PI)

    def remainder_from_sigma(self, xp: Any, sigma: Any) -> Any:
        return xp.arcsin(xp.sqrt(sigma)) * (1 / HALF_PI)


@dataclasses.dataclass(frozen=True)
class KineticOptimalUniformScheduler(Scheduler):
    """sigma = sin^2(r W) / sin^2 W, W = acos sqrt(1/V): the geodesic of sqrt(p) for a uniform source over V tokens.

    kappa = sin(t W) sin((1+r) W) / sin^2 W, d kappa = W sin(2 r W) / sin^2 W. Every token has the same p, so all
    share one schedule. For the mask source W = pi/2, which is `SineSquaredScheduler`.
    """

    vocab_size: int

    def __post_init__(self) -> None:
        if not (isinstance(self.vocab_size, int) and self.vocab_size >= 2):
            raise ValueError(f"vocab_size = {self.vocab_size!r}: expected an integer >= 2")

    @property
    def _angles(self) -> tuple[float, float, float]:
        """W, and sin W, cos W from V itself (acos would lose digits of cos W at large V)."""
        cosine = 1 / math.sqrt(self.vocab_size)
        return HALF_PI - math.asin(cosine), math.sqrt(1 - 1 / self.vocab_size), cosine

    def formulas(self, xp: Any, t: Any, r: Any) -> tuple[Any, Any, Any]:
        w, sine, cosine = self._angles
        short = 2 * math.asin(cosine)  # pi - 2W
        square = sine**2
        # sin((1+r)W) = sin(2W - tW) = sin(short + tW), and sin(2rW) = sin(short + 2tW): exact where t is small.
        kappa = xp.sin(w * t) * xp.sin(short + w * t) / square
        slope = xp.where(t <= 0.5, xp.sin(short + 2 * w * t), xp.sin(2 * w * r))
        return kappa, xp.sin(w * r) ** 2 / square, w / square * slope

    def time_from_kappa(self, xp: Any, kappa: Any) -> Any:
        # asin(sin W) - asin(sqrt(1-k) sin W), with the difference of the two taken in closed form.
        w, sine, cosine = self._angles
        spread = xp.sqrt(cosine**2 + sine**2 * kappa) + cosine * xp.sqrt(1.0 - kappa)
        return xp.arcsin(sine * kappa / spread) * (1 / w)

    def remainder_from_sigma(self, xp: Any, sigma: Any) -> Any:
        w, sine, _ = self._angles
        return xp.arcsin(xp.sqrt(sigma) * sine) * (1 / w)
