"""The base class of schedulers: kappa, sigma = 1 - kappa, their derivatives, the jump rate, and the inverse.

kappa_t rises from 0 (source) to 1 (data). A scheduler states its formulas once, for jax.numpy and numpy alike. The
traced float32 values and the host's float64 scalars therefore come from the same lines.
"""

import abc
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.time import Time, TimeLike, as_time, check_unit_interval, floating, host_time

HALVINGS = 64


class SchedulerOutput(NamedTuple):
    """alpha_t = kappa_t, sigma_t = 1 - kappa_t and their derivatives in t, all of t's shape."""

    alpha_t: jax.Array
    sigma_t: jax.Array
    d_alpha_t: jax.Array
    d_sigma_t: jax.Array


class HostSchedule(NamedTuple):
    """kappa, sigma, d kappa / dt and the jump rate, all numpy float64 of t's shape."""

    kappa: np.ndarray
    sigma: np.ndarray
    d_kappa: np.ndarray
    jump_rate: np.ndarray


class Scheduler(abc.ABC):
    """A convex scheduler: alpha_t + sigma_t = 1, non-decreasing (mathematics.md A).

    A new scheduler defines `formulas`. The inverse, from kappa to t, is found by bisection; a scheduler with a closed
    form overrides `time_from_kappa` and `remainder_from_sigma`.
    """

    @abc.abstractmethod
    def formulas(self, xp: Any, t: Any, r: Any) -> tuple[Any, Any, Any]:
        """(kappa, sigma, d kappa / dt) at t and r = 1 - t, of their shape, computed with `xp` (jax.numpy or numpy).

        Each must keep its digits where it is near 0.
        """

    def time_from_kappa(self, xp: Any, kappa: Any) -> Any:
        """The t with kappa_t = kappa, by bisection. A closed form need only be accurate where t <= 1/2."""
        return bisect(xp, lambda t: self.formulas(xp, t, 1.0 - t)[0], kappa)

    def remainder_from_sigma(self, xp: Any, sigma: Any) -> Any:
        """The r = 1 - t with sigma_t = sigma, by bisection. A closed form need only be accurate where r <= 1/2."""
        return bisect(xp, lambda r: self.formulas(xp, 1.0 - r, r)[1], sigma)

    def rate(self, xp: Any, t: Any, r: Any) -> Any:
        """The jump rate lambda_t = d kappa / sigma, per unit of t; +inf where sigma = 0."""
        _, sigma, d_kappa = self.formulas(xp, t, r)
        ended = sigma <= 0
        return xp.where(ended, xp.inf, d_kappa / xp.where(ended, xp.ones_like(sigma), sigma))

    def invert(self, xp: Any, kappa: Any, sigma: Any) -> Time:
        """The `Time` at kappa and sigma. t <= 1/2 comes from kappa and t > 1/2 from sigma, where each is accurate."""
        t, r = self.time_from_kappa(xp, kappa), self.remainder_from_sigma(xp, sigma)
        early = t <= 0.5
        return Time(xp.clip(xp.where(early, t, 1.0 - r), 0.0, 1.0), xp.clip(xp.where(early, 1.0 - t, r), 0.0, 1.0))

    def __call__(self, t: TimeLike) -> SchedulerOutput:
        """kappa_t, sigma_t and derivatives, of t's shape and dtype."""
        kappa, sigma, d_kappa = self.formulas(jnp, *as_time(t))
        return SchedulerOutput(kappa, sigma, d_kappa, -d_kappa)

    def jump_rate(self, t: TimeLike) -> jax.Array:
        """lambda_t = (d kappa_t/dt) / sigma_t, per unit of t; +inf at t = 1 (when sigma_1 = 0)."""
        return self.rate(jnp, *as_time(t))

    def kappa_inverse(self, kappa: Any) -> jax.Array:
        """The t with kappa_t = kappa, of kappa's shape. Raises ValueError for kappa outside [0, 1]."""
        return self.inverse(kappa).t

    def inverse(self, kappa: Any, sigma: Any = None) -> Time:
        """The `Time` at kappa_t = kappa. `sigma` = 1 - kappa may be given if it is known with more digits.

        Raises ValueError for kappa outside [0, 1].
        """
        check_unit_interval("kappa", kappa)
        kappa = floating(kappa)
        return self.invert(jnp, kappa, 1.0 - kappa if sigma is None else floating(sigma))

    def snr_inverse(self, snr: Any) -> jax.Array:
        """The t with alpha_t / sigma_t = snr >= 0, of snr's shape; snr = +inf gives the end of the path."""
        snr = floating(snr)
        sigma = 1.0 / (1.0 + snr)
        kappa = jnp.where(snr < 1, snr * sigma, 1.0 - sigma)
        return self.invert(jnp, kappa, sigma).t

    def integrated_hazard(self, start: TimeLike, end: TimeLike) -> jax.Array:
        """The integral of lambda from `start` t to `end` s >= t: log(sigma_t / sigma_s); +inf where sigma_s = 0."""
        return jnp.log(self(start).sigma_t) - jnp.log(self(end).sigma_t)

    def step_probability(self, start: TimeLike, end: TimeLike) -> jax.Array:
        """The probability of a jump between `start` t and `end` s: 1 - sigma_s / sigma_t, finite up to s = 1.

        In float32 a short step loses digits, because sigma_t - sigma_s cancels. Samplers use
        `float64_step_probability` on the host instead.
        """
        sigma_t, sigma_s = self(start).sigma_t, self(end).sigma_t
        alive = sigma_t > 0
        return jnp.where(alive, (sigma_t - sigma_s) / jnp.where(alive, sigma_t, 1.0), 1.0)

    def float64(self, t: TimeLike, r: Any = None) -> HostSchedule:
        """The same formulas in numpy float64 on the host. t: a number, an array or a `Time`. r: 1 - t unless given."""
        with np.errstate(divide="ignore", invalid="ignore"):
            time = host_time(t, r)
            return HostSchedule(*self.formulas(np, *time), self.rate(np, *time))

    def float64_inverse(self, kappa: Any, sigma: Any = None) -> Time:
        """`inverse` in numpy float64 on the host: a `Time` (t, r)."""
        check_unit_interval("kappa", kappa)
        kappa = np.asarray(kappa, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            sigma = 1.0 - kappa if sigma is None else np.asarray(sigma, dtype=np.float64)
            return self.invert(np, kappa, sigma)

    def float64_step_probability(self, start: TimeLike, end: TimeLike) -> np.ndarray:
        """`step_probability` in numpy float64 on the host, for the per-step scalars of a sampler."""
        sigma_t, sigma_s = self.float64(start).sigma, self.float64(end).sigma
        alive = sigma_t > 0
        return np.where(alive, (sigma_t - sigma_s) / np.where(alive, sigma_t, 1.0), 1.0)


def bisect(xp: Any, rising: Callable[[Any], Any], value: Any) -> Any:
    """The x in [0, 1] with rising(x) = value, of value's shape and type; an end where there is none.

    64 halvings: to 2^-64 near 0, elsewhere to the last digits. A loop in the program where xp is jax.numpy.
    """

    def halve(bounds: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = bounds
        middle = 0.5 * (low + high)
        above = rising(middle) > value
        return xp.where(above, low, middle), xp.where(above, middle, high)

    bounds = xp.zeros_like(value), xp.ones_like(value)
    if xp is jnp:
        low, high = jax.lax.fori_loop(0, HALVINGS, lambda _, bounds: halve(bounds), bounds)
    else:
        low, high = functools.reduce(lambda bounds, _: halve(bounds), range(HALVINGS), bounds)
    return 0.5 * (low + high)


def log_both(xp: Any, x: Any, complement: Any) -> Any:
    """log x, from `complement` = 1 - x where x > 1/2: accurate at both ends of [0, 1]."""
    near_one = x > 0.5
    return xp.where(near_one, xp.log1p(-xp.where(near_one, complement, 0.0)), xp.log(xp.where(near_one, 1.0, x)))


def one_minus_power(xp: Any, x: Any, complement: Any, n: float) -> Any:
    """1 - x^n for n > 0, from `complement` = 1 - x near x = 1; its gradient at x = 0 is that of the power."""
    small = x < 1e-6
    inner, left = xp.where(small, 0.5, x), xp.where(small, 0.5, complement)
    return xp.where(small, 1 - x**n, -xp.expm1(n * log_both(xp, inner, left)))


def slope_of_power(xp: Any, x: Any, n: float) -> Any:
    """n x^(n-1); for n = 1 it has no power whose gradient would be 0 * inf at x = 0."""
    return xp.ones_like(x) if n == 1 else n * x ** (n - 1)


def require_positive(name: str, value: float) -> None:
    """Raises ValueError unless `value` is a finite number above 0."""
    if not (isinstance(value, (int, float)) and 0 < value < float("inf")):
        raise ValueError(f"{name} = {value!r}: expected a finite number > 0")
