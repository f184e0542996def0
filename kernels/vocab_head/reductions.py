"""The sums over the vocabulary that a query may ask for: the definition `reduce`, and its terms for Pallas kernels.

A kernel on a GPU needs the value and the derivatives of each term on a tile, from operations that Mosaic GPU has, which
has neither log1p nor tan. The `Summand` classes give them.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from .types import KINDS, Reduction


def reduce(probs: Array, reduction: Reduction) -> Array:
    """(..., V) probabilities -> (...), with the reduction's arrays (V,) and (...): see `Reduction`.

    Raises ValueError where its kind is not one of `KINDS`.
    """
    if reduction.kind not in KINDS:
        raise ValueError(f"reduction.kind = {reduction.kind!r}: expected one of {', '.join(KINDS)}")
    inner, scale = _over_states(reduction.inner, probs), _over_rows(reduction.scale, probs)
    terms = probs
    if reduction.kind == "cotangent":
        terms = terms * one_minus_y_cot_y(_times(_times(jnp.ones_like(probs), inner), scale))
    if reduction.kind == "log1p":
        terms = jnp.log1p(_times(_times(terms, inner), scale))
    return _times(terms, _over_states(reduction.weights, probs)).sum(axis=-1)


def _over_states(vector: Array | None, probs: Array) -> Array | None:
    if vector is None:
        return None
    return vector.astype(probs.dtype).reshape((1,) * (probs.ndim - 1) + (-1,))


def _over_rows(vector: Array | None, probs: Array) -> Array | None:
    return None if vector is None else vector.astype(probs.dtype)[..., None]


# Terms on a tile ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Summand:
    """weights f(p, y) with y = scale inner, of a `Reduction` on one tile, and its derivatives, all (R, C).

    None stands for ones. The terms are methods and not values, so that only those that are used take registers.
    """

    probs: Array
    weights: Array | None
    scale: Array | None
    inner: Array | None

    def value(self) -> Array:
        return _times(self.by_weights(), self.weights)

    def by_probs(self) -> Array:
        raise NotImplementedError

    def by_weights(self) -> Array:
        raise NotImplementedError

    def by_product(self) -> Array:
        """The derivative in y."""
        raise NotImplementedError

    def by_scale(self) -> Array:
        return _times(self.by_product(), self.inner)

    def by_inner(self) -> Array:
        return _times(self.by_product(), self.scale)

    def product(self) -> Array:
        return _times(_times(jnp.ones_like(self.probs), self.scale), self.inner)


class Linear(Summand):
    """p"""

    def by_probs(self) -> Array:
        return _times(jnp.ones_like(self.probs), self.weights)

    def by_weights(self) -> Array:
        return self.probs


class Log1p(Summand):
    """log(1 + y p)"""

    def by_probs(self) -> Array:
        y = self.product()
        return _times(y / (1 + y * self.probs), self.weights)

    def by_weights(self) -> Array:
        return log_1p(self.product() * self.probs)

    def by_product(self) -> Array:
        return _times(self.probs / (1 + self.product() * self.probs), self.weights)


class Cotangent(Summand):
    """p (1 - y cot y)"""

    def by_probs(self) -> Array:
        return _times(one_minus_y_cot_y(self.product()), self.weights)

    def by_weights(self) -> Array:
        return self.probs * one_minus_y_cot_y(self.product())

    def by_product(self) -> Array:
        return _times(self.probs * cotangent_slope(self.product()), self.weights)


SUMMANDS = {"linear": Linear, "log1p": Log1p, "cotangent": Cotangent}


def _times(a: Array, b: Array | None) -> Array:
    return a if b is None else a * b


def log_1p(x: Array) -> Array:
    """log(1 + x) for x >= 0, by its series where the sum would round x away. Relative error 1e-7."""
    series = jnp.full_like(x, -1 / 8)
    for n in range(7, 0, -1):
        series = series * x + (1 / n if n % 2 else -1 / n)
    return jnp.where(x < 0.1, series * x, jnp.log(1 + x))


def one_minus_y_cot_y(y: Array) -> Array:
    """1 - y cot y for y in [0, pi), by its series where the difference would cancel. (Mosaic GPU has no tan.)"""
    small, square = y < 0.1, y * y
    series = square * (1 / 3 + square * (1 / 45 + square * (2 / 945 + square / 4725)))
    safe = jnp.where(small, 1.0, y)
    return jnp.where(small, series, 1 - safe * jnp.cos(safe) / jnp.sin(safe))


def cotangent_slope(y: Array) -> Array:
    """The derivative of `one_minus_y_cot_y`: y / sin^2 y - cot y."""
    small, square = y < 0.1, y * y
    series = y * (2 / 3 + square * (4 / 45 + square * (12 / 945 + square * 8 / 4725)))
    safe = jnp.where(small, 1.0, y)
    sin = jnp.sin(safe)
    return jnp.where(small, series, (safe / sin - jnp.cos(safe)) / sin)
