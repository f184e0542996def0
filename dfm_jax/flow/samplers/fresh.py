"""The fresh tokens of a step: draws that do not ask the model."""

from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.flow.samplers.step import is_uniform


def fresh_tokens(kind: str, source: Any, keys: jax.Array, x: jax.Array) -> jax.Array:
    """The fresh tokens y (B, L) of a step, with z = x (B, L) and keys (B,), one per sequence.

    kind: 'none' gives x itself, 'source' y ~ p, 'others' y ~ p given y != z, 'data' a uniform data token, 'data_others'
    a uniform data token other than z. 'others' holds for mask and uniform sources. For a general source y ~ p, and y
    may be z; then nothing moves.
    """
    if kind == "none":
        return x
    if kind in ("data", "data_others"):
        size = source.vocab_size
        fresh = jax.vmap(lambda key: jax.random.randint(key, x.shape[1:], 0, size, jnp.int32))(keys)
        if kind == "data":
            return fresh
        skip = jax.vmap(lambda key: jax.random.randint(key, x.shape[1:], 1, size, jnp.int32))(keys)
        return jnp.where(x < size, (x + skip) % size, fresh)
    if source.mask_id is not None:
        return jnp.full(x.shape, source.mask_id, x.dtype)
    if kind == "others" and is_uniform(source):
        states = source.num_states
        skip = jax.vmap(lambda key: jax.random.randint(key, x.shape[1:], 1, states, jnp.int32))(keys)
        return (x + skip) % states
    return jax.vmap(lambda key: source.sample(key, x.shape[1:]))(keys).astype(x.dtype)
