"""Attention as its definition: the scores, their softmax, the weighted sum."""

import jax
import jax.numpy as jnp
from jax import Array


def attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(head_dim)) v, (batch, length, heads, head_dim) of any one floating dtype."""
    # (jax.nn's own XLA form does not differentiate bfloat16 under strict dtype promotion.)
    # Float32 operands are multiplied as float32, not as TF32.
    precision = None if q.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    acc = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k, precision=precision, preferred_element_type=acc)
    probs = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(q.dtype)
    return jnp.einsum("bhlm,bmhd->blhd", probs, v, precision=precision)
