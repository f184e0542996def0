"""Checks of tokens, and one-hot views of them."""

from typing import Any

import jax
import jax.numpy as jnp


def check_tokens(logits: jax.Array, tokens: jax.Array, num_states: int | None = None) -> None:
    """Raises ValueError unless tokens (...) are integers and logits are (..., S), with S = `num_states` if given."""
    check_integers("tokens", tokens)
    states: Any = logits.shape[-1] if num_states is None else num_states
    if logits.shape != (*tokens.shape, states):
        raise ValueError(f"logits of shape {logits.shape}: expected {(*tokens.shape, states)}")


def as_pair(other: jax.Array, x_1: jax.Array, name: str = "x_0") -> tuple[jax.Array, jax.Array]:
    """`other` and x_1 as jax arrays of x_1's dtype. Raises ValueError unless both are integers of one shape."""
    check_integers(name, other)
    check_integers("x_1", x_1)
    if other.shape != x_1.shape:
        raise ValueError(f"{name} of shape {other.shape}: expected that of x_1, {x_1.shape}")
    x_1 = jnp.asarray(x_1)
    return jnp.asarray(other).astype(x_1.dtype), x_1


def check_integers(name: str, tokens: jax.Array) -> None:
    """Raises ValueError unless `tokens` are integers."""
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"{name} of {tokens.dtype}: expected integers")


def one_hot_like(ids: jax.Array, probs: jax.Array) -> jax.Array:
    """The one-hot vectors of `ids` (...) over the last axis of `probs` (..., S), in its dtype."""
    return jax.nn.one_hot(ids, probs.shape[-1], dtype=probs.dtype)


def at_tokens(tokens: jax.Array, num_states: int) -> jax.Array:
    """The one-hot view of tokens (...) of any integer type: (..., S) bool, with S = num_states."""
    states = jnp.arange(num_states, dtype=jnp.int32).reshape((1,) * tokens.ndim + (-1,))
    return states == jnp.asarray(tokens, jnp.int32)[..., None]
