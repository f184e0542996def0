"""Random numbers that keep their precision at both ends: 32-bit uniforms with their complement, and Bernoulli draws.

A float32 uniform on a grid of 2^-23 cannot decide an event of probability 1e-6; these can.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def is_batch_of_keys(key: jax.Array) -> bool:
    """Whether `key` holds one typed key per row, rather than being one key."""
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1


def split(key: jax.Array, num: int) -> tuple[jax.Array, ...]:
    """`num` keys from `key`; from keys (B,), one per row, `num` batches of keys (B,)."""
    if not is_batch_of_keys(key):
        return tuple(jax.random.split(key, num))
    keys = jax.vmap(lambda k: jax.random.split(k, num))(key)
    return tuple(keys[:, i] for i in range(num))


def by_row(draw: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """draw(key, shape); with keys (B,), one per row, row i of `shape` from key i alone."""
    if not is_batch_of_keys(key):
        return draw(key, shape)
    if not shape or shape[0] != key.shape[0]:
        raise ValueError(f"key of shape {key.shape}: accepted one key, or one for each row of shape {shape}")
    return jax.vmap(lambda k: draw(k, shape[1:]))(key)


def uniform_pair(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array]:
    """(u, 1 - u), u uniform on the midpoints of 2^32 cells of [0, 1], each relatively accurate near its own 0."""
    bits = by_row(lambda k, s: jax.random.bits(k, s, jnp.uint32), key, shape)
    return _unit(bits, dtype), _unit(~bits, dtype)


def bernoulli(key: jax.Array, probability: jax.Array, complement: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """True with `probability` = 1 - `complement` (both broadcast to `shape`), exact to 2^-32; sure at 0 and 1."""
    u, left = uniform_pair(key, shape, probability.dtype)
    return jnp.where(probability <= 0.5, u < probability, left >= complement)


def _unit(bits: jax.Array, dtype: Any) -> jax.Array:
    return (bits.astype(dtype) + 0.5) * 2.0**-32
