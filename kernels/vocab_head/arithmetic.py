"""Matrix products and masks that all implementations share."""

import jax
import jax.numpy as jnp
from jax import Array


def accumulator(dtype) -> jnp.dtype:
    """float32, or float64 for float64 operands: the dtype of products and statistics."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def matmul(a: Array, b: Array, contract: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """a . b over the given axes, accumulated in float32. Float32 operands are multiplied as float32, not as TF32."""
    precision = None if a.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(
        a, b, (contract, ((), ())), precision=precision, preferred_element_type=accumulator(a.dtype)
    )


def masked_bias(bias: Array, dtype, *, num_valid: int, suppress: int | None, offset: Array | int = 0) -> Array:
    """The bias (V,) with -inf at padding and at the suppressed id, so that the logits need no mask."""
    columns = jnp.arange(bias.shape[0], dtype=jnp.int32) + offset
    excluded = columns >= num_valid
    if suppress is not None:
        excluded |= columns == suppress
    return jnp.where(excluded, -jnp.inf, bias.astype(dtype))


def allowed(ids: Array, *, num_valid: int, suppress: int | None) -> Array:
    """Bool of the shape of `ids`: True where an id is neither padding nor suppressed."""
    valid = ids < num_valid
    return valid if suppress is None else valid & (ids != suppress)
