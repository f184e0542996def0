"""Couplings of source and data: independent, or conditional on given positions (mathematics.md B).

Let I in {0, 1}^L mark the fixed positions. Then x_0 = I x_1 + (1 - I) source. A fixed position has x_t = x_1 at every
t and carries no loss. The bound is then on log p(x_{I=0} | x_{I=1}).
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.flow.random import bernoulli, by_row, split
from dfm_jax.flow.sources import Source
from dfm_jax.flow.tree import take_old_names


class CoupledPair(NamedTuple):
    """x_0, x_1 (B, L) int32, and `fixed` (B, L) bool: the positions where x_0 is set to x_1."""

    x_0: jax.Array
    x_1: jax.Array
    fixed: jax.Array

    @property
    def kept(self) -> jax.Array:
        """`fixed`, as version 0.1 called it."""
        return self.fixed


class Coupling(abc.ABC):
    """A law of the fixed positions. Elsewhere x_0 is drawn from the source. Version 0.1 called `fixed` kept."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        take_old_names(cls, {"kept": "fixed"})

    @abc.abstractmethod
    def fixed(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws the fixed positions, (B, L) bool for shape (B, L). `key` is one key, or (B,) keys, one per row."""

    def kept(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """`fixed`, as version 0.1 called it."""
        return self.fixed(key, shape)

    def sample(self, key: jax.Array, x_1: jax.Array, source: Source) -> CoupledPair:
        """Draws a pair for data x_1 (B, L) int. `key` is one key, or (B,) keys, one per row."""
        fixed_key, source_key = split(key, 2)
        fixed = self.fixed(fixed_key, x_1.shape)
        return CoupledPair(conditional_coupling(source.sample(source_key, x_1.shape), x_1, fixed), x_1, fixed)


@dataclasses.dataclass(frozen=True)
class IndependentCoupling(Coupling):
    """x_0 and x_1 are independent: no position is fixed."""

    def fixed(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros(shape, bool)


@dataclasses.dataclass(frozen=True)
class ConditionalCoupling(Coupling):
    """For prompts and infilling: each row fixes a prefix with probability `prompt_rate`, else scattered tokens.

    The prefix length is uniform on {0, ..., floor(max_fraction L)}. Scattered tokens are fixed independently, with a
    probability that is uniform on [0, max_fraction] for each row. At least one token of a row stays free.
    Raises ValueError for rates outside [0, 1].
    """

    prompt_rate: float = 0.5
    max_fraction: float = 0.9

    def __post_init__(self) -> None:
        for name, value in (("prompt_rate", self.prompt_rate), ("max_fraction", self.max_fraction)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} = {value!r}: expected values in [0, 1]")

    def fixed(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        rows, length = shape
        kind_key, prefix_key, rate_key, token_key, spare_key = split(key, 5)
        rate = jnp.float32(self.prompt_rate)
        prompt = bernoulli(kind_key, rate, 1 - rate, (rows, 1))
        longest = int(self.max_fraction * length)
        prefix = by_row(lambda k, s: jax.random.randint(k, s, 0, longest + 1, jnp.int32), prefix_key, (rows, 1))
        keep_rate = self.max_fraction * by_row(jax.random.uniform, rate_key, (rows, 1))
        scattered = by_row(jax.random.uniform, token_key, shape) < keep_rate
        position = jnp.arange(length, dtype=jnp.int32)[None, :]
        fixed = jnp.where(prompt, position < prefix, scattered)
        spare = by_row(lambda k, s: jax.random.randint(k, s, 0, length, jnp.int32), spare_key, (rows, 1))
        return fixed & ~(fixed.all(axis=-1, keepdims=True) & (position == spare))


def conditional_coupling(x_0: jax.Array, x_1: jax.Array, fixed: jax.Array) -> jax.Array:
    """x_0 with x_1 put in at the `fixed` positions, where x_t is then x_1 at every t; all (B, L)."""
    return jnp.where(fixed, x_1, x_0)


def uncharged(loss: jax.Array, fixed: jax.Array) -> jax.Array:
    """`loss` (B, L) with 0 at the fixed positions, whatever it was there. No gradient passes through them."""
    return jnp.where(fixed, 0.0, loss)


def mask_uniform_subset(key: jax.Array, x_1: jax.Array, mask_id: int) -> jax.Array:
    """Masks n ~ U{1..L} positions of each row of x_1 (B, L), a uniform subset: x_t of the count form (D.5)."""
    rows, length = x_1.shape
    count_key, order_key = split(key, 2)
    count = by_row(lambda k, s: jax.random.randint(k, s, 1, length + 1, jnp.int32), count_key, (rows, 1))
    return mask_subset(order_key, x_1, count[:, 0], mask_id)


def mask_subset(key: jax.Array, x_1: jax.Array, count: jax.Array, mask_id: int) -> jax.Array:
    """Masks a uniform subset of `count` (B,) positions of x_1 (B, L). `key` is one key, or (B,) keys, one per row."""
    order = by_row(jax.random.uniform, key, x_1.shape)
    rank = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1).astype(jnp.int32)
    return jnp.where(rank < count[:, None], mask_id, x_1)


def get_coupling(name: str) -> Coupling:
    """The coupling called `name` in a config: 'independent' or 'conditional'. Raises ValueError otherwise."""
    couplings = {"independent": IndependentCoupling, "conditional": ConditionalCoupling}
    if name not in couplings:
        raise ValueError(f"coupling = {name!r}: expected {', '.join(couplings)}")
    return couplings[name]()
