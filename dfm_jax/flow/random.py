"""Random numbers that are precise near 0 and near 1: 32-bit uniforms with their complement, and Bernoulli draws.

A float32 uniform from jax lies on a grid of 2^-23, too coarse for an event of probability 1e-6. These are fine enough.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def is_batch_of_keys(key: jax.Array) -> bool:
    """Whether `key` is (B,) typed keys, one for each row, and not a single key."""
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1


def split(key: jax.Array, num: int) -> tuple[jax.Array, ...]:
    """Splits one key into `num` keys, or keys (B,) into `num` batches of keys (B,)."""
    if not is_batch_of_keys(key):
        return tuple(jax.random.split(key, num))
    keys = jax.vmap(lambda k: jax.random.split(k, num))(key)
    return tuple(keys[:, i] for i in range(num))


def by_row(draw: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """draw(key, shape). With keys (B,), row i of `shape` is drawn from key i alone.

    Raises ValueError unless there is one key, or one for each row.
    """
    if not is_batch_of_keys(key):
        return draw(key, shape)
    if not shape or shape[0] != key.shape[0]:
        raise ValueError(f"key of shape {key.shape}: expected one key, or one for each row of shape {shape}")
    return jax.vmap(lambda k: draw(k, shape[1:]))(key)


def uniform_pair(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array]:
    """(u, 1 - u) of `shape`. u is uniform on the midpoints of 2^32 cells of [0, 1]; each keeps its digits near 0."""
    bits = by_row(lambda k, s: jax.random.bits(k, s, jnp.uint32), key, shape)
    return _unit(bits, dtype), _unit(~bits, dtype)


def bernoulli(key: jax.Array, probability: jax.Array, complement: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Bools of `shape`, True with `probability` = 1 - `complement` (both broadcast), exact to 2^-32 and at 0 and 1."""
    u, left = uniform_pair(key, shape, probability.dtype)
    return jnp.where(probability <= 0.5, u < probability, left >= complement)


def _unit(bits: jax.Array, dtype: Any) -> jax.Array:
    return (bits.astype(dtype) + 0.5) * 2.0**-32
