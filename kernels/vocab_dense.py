"""The vocabulary head as its definition: the logits, their log-softmax, gradients by differentiation."""

import jax
import jax.numpy as jnp
from jax import Array

from .vocab_types import LogProbs, Reduction, Shift, accumulator, masked_bias, matmul, pad_columns, reduce_probs


def logits(
    features: Array, kernel: Array, bias: Array, *, shift: Shift | None, suppress: int | None, num_valid: int
) -> Array:
    """(..., D) -> (..., V): -inf at padding and at the suppressed id, one logit of each row shifted."""
    rows = features.reshape(-1, features.shape[-1])
    out = matmul(rows, kernel.astype(features.dtype), ((1,), (0,)))
    out = out + masked_bias(bias, accumulator(features.dtype), num_valid=num_valid, suppress=suppress)[None]
    if shift is not None:
        at = jnp.arange(kernel.shape[1], dtype=jnp.int32)[None] == shift.ids.astype(jnp.int32).reshape(-1, 1)
        out = jnp.where(at, out + shift.amounts.reshape(-1, 1).astype(out.dtype), out)
    return out.reshape(*features.shape[:-1], kernel.shape[1])


def log_probs(
    features: Array,
    kernel: Array,
    bias: Array,
    ids: Array,
    *,
    shift: Shift | None,
    suppress: int | None,
    num_valid: int,
    reduction: Reduction | None,
) -> LogProbs:
    values = logits(features, kernel, bias, shift=shift, suppress=suppress, num_valid=num_valid)
    log_sum_exp = jax.nn.logsumexp(values, axis=-1)
    at_ids = jnp.take_along_axis(values, ids, axis=-1) - log_sum_exp[..., None]
    if reduction is None:
        return LogProbs(at_ids, log_sum_exp, None)
    probs = jnp.exp(values - log_sum_exp[..., None]).reshape(1, -1, kernel.shape[1])
    scale = None if reduction.scale is None else reduction.scale.reshape(1, -1).astype(probs.dtype)
    weights = pad_columns(reduction.weights, kernel.shape[1], probs.dtype)
    inner = pad_columns(reduction.inner, kernel.shape[1], probs.dtype)
    reduced = reduce_probs(reduction.kind, probs, weights, scale, inner)
    return LogProbs(at_ids, log_sum_exp, reduced.reshape(log_sum_exp.shape))


def draw(values: Array, words: Array, temperature: Array, top_p: float) -> Array:
    """(..., V) logits -> (...) int32: one token from their softmax by two 32-bit words.

    The definition of the law: the probabilities in order of size, those after mass `top_p` removed (of equal ones
    none), an exponential race for the draw, with noise from the words.
    """
    values = values.astype(jnp.float32) / temperature[..., None]
    probs = jax.nn.softmax(values, axis=-1)
    if top_p < 1.0:
        ordered = jnp.sort(probs, axis=-1, descending=True)
        before = jnp.cumsum(ordered, axis=-1) - ordered
        last = jnp.take_along_axis(ordered, (before < top_p).sum(-1, keepdims=True) - 1, axis=-1)
        values = jnp.where(probs >= last, values, -jnp.inf)
    keys = jax.random.wrap_key_data(words.reshape(-1, 2), impl="threefry2x32")
    noise = jax.vmap(lambda key: jax.random.gumbel(key, values.shape[-1:], mode="high"))(keys)
    return jnp.argmax(values + noise.reshape(values.shape), axis=-1).astype(jnp.int32)
