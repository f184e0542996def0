"""Inverse temperatures beta of the metric path, functions of its clock: 0 at kappa = 0, infinite at kappa = 1 (C.5)."""

import dataclasses
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.schedulers.base import log_both, require_positive


class Beta(Protocol):
    """(beta, d beta / d kappa) at kappa and sigma = 1 - kappa, computed with `xp` (jax.numpy or numpy)."""

    def __call__(self, xp: Any, kappa: Any, sigma: Any) -> tuple[Any, Any]: ...


@dataclasses.dataclass(frozen=True)
class PowerBeta:
    """beta = c (kappa / sigma)^a (Shaul et al.; FUDOKI, URSA: c = 3, a = 0.9). Its slope at 0 is infinite if a < 1.

    Raises ValueError unless c > 0 and a > 0.
    """

    c: float = 3.0
    a: float = 0.9

    def __post_init__(self) -> None:
        require_positive("c", self.c)
        require_positive("a", self.a)

    def __call__(self, xp: Any, kappa: Any, sigma: Any) -> tuple[Any, Any]:
        beta = self.c * (kappa / sigma) ** self.a
        return beta, self.c * self.a * kappa ** (self.a - 1) * sigma ** (-self.a - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class ConstantSpeedBeta:
    """d beta / d kappa proportional to 1 / sqrt(mean over x_1 of Var[d(., x_1)]): constant Fisher-Rao speed.

    rows: distances (K, V) from K tokens x_1 to every token; each row has one 0. panels: intervals of the table.
    The table is made once. Between its nodes beta is a cubic in -log sigma with the exact slopes, and linear after the
    last node. Raises ValueError for a row without a positive distance.
    """

    rows: np.ndarray
    panels: int = 400

    def __post_init__(self) -> None:
        rows = np.asarray(self.rows, np.float64)
        if rows.ndim != 2 or not (rows >= 0).all() or not (rows.max(axis=1) > 0).all():
            raise ValueError(f"rows of shape {rows.shape}: expected distances (K, V) >= 0, some > 0 in each row")
        nearest = np.where(rows > 0, rows, np.inf).min()
        largest, scale = 60.0 / nearest, 0.25 / rows.max()
        edges = scale * np.expm1(np.linspace(0.0, np.log1p(largest / scale), self.panels + 1))
        nodes, weights = np.polynomial.legendre.leggauss(4)
        half = np.diff(edges)[:, None] / 2
        inside = edges[:-1, None] + half * (1 + nodes)
        speed = self._speed(rows, inside.ravel()).reshape(inside.shape)
        parts = (speed * weights * half).sum(axis=1)
        left = np.cumsum(parts[::-1])[::-1]  # from each edge to the end, small ones first
        keep = left > 1e-14 * left[0]
        slope = self._speed(rows, edges[:-1][keep]) / left[0]  # d kappa / d beta
        sigma = left[keep] / left[0]
        object.__setattr__(self, "_clock", -np.log(sigma))
        object.__setattr__(self, "_beta", edges[:-1][keep])
        object.__setattr__(self, "_slope", sigma / slope)  # d beta / d(-log sigma)
        object.__setattr__(self, "length", float(left[0]))

    @staticmethod
    def _speed(rows: np.ndarray, betas: np.ndarray) -> np.ndarray:
        """sqrt(mean Var) at each of `betas`, which is twice the Fisher-Rao speed of the square roots."""
        speed = np.empty(len(betas))
        for i, beta in enumerate(betas):
            weight = np.exp(-beta * (rows - rows.min(axis=1, keepdims=True)))
            weight /= weight.sum(axis=1, keepdims=True)
            mean = (weight * rows).sum(axis=1, keepdims=True)
            speed[i] = np.sqrt((weight * (rows - mean) ** 2).sum(axis=1).mean())
        return speed

    def __call__(self, xp: Any, kappa: Any, sigma: Any) -> tuple[Any, Any]:
        at = -log_both(xp, sigma, kappa)
        like = xp.asarray(at)
        table = (self._clock, self._beta, self._slope)  # pyright: ignore[reportAttributeAccessIssue]
        clock, beta, slope = (xp.asarray(v, like.dtype) for v in table)
        i = xp.clip(xp.searchsorted(clock, like, side="right") - 1, 0, len(clock) - 2)
        h = clock[i + 1] - clock[i]
        s = (like - clock[i]) / h
        m0, m1, rise = slope[i] * h, slope[i + 1] * h, beta[i + 1] - beta[i]
        value = beta[i] + s * (m0 + s * (3 * rise - 2 * m0 - m1 + s * (m0 + m1 - 2 * rise)))
        change = (m0 + s * (2 * (3 * rise - 2 * m0 - m1) + 3 * s * (m0 + m1 - 2 * rise))) / h
        beyond = like > clock[-1]
        value = xp.where(beyond, beta[-1] + slope[-1] * (like - clock[-1]), value)
        return value, xp.where(beyond, slope[-1], change) / sigma


def beta_float64(beta: Beta, kappa: Any, sigma: Any) -> tuple[np.ndarray, np.ndarray]:
    """`beta` on the host: (beta, slope), float64. beta is infinite at sigma = 0. An infinite slope becomes 0."""
    kappa, sigma = np.asarray(kappa, np.float64), np.asarray(sigma, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, slope = beta(np, kappa, sigma)
    ended = sigma <= 0
    return np.where(ended, np.inf, value), np.where(np.isfinite(slope), slope, 0.0)


def beta_float32(beta: Beta, kappa: Any, sigma: Any) -> tuple[Any, Any]:
    """`beta` on the device: (beta, slope), finite. kappa and sigma are at least 1e-12, below any that is drawn."""
    return beta(jnp, jnp.maximum(kappa, 1e-12), jnp.maximum(sigma, 1e-12))
