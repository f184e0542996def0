"""The definition of the vocabulary head: all logits, their log-softmax, and gradients by differentiation."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from .arithmetic import accumulator, masked_bias, matmul
from .reductions import reduce
from .types import Answer, Head, Query


def answer_from_logits(logits: Array, query: Query) -> Answer:
    """The definition of a query's answer: logits (..., S) -> at_ids (..., K), reduced (...), at least float32.

    Raises ValueError if the leading axes of logits and ids differ, or for an unknown kind of reduction.
    """
    if logits.shape[:-1] != query.ids.shape[:-1]:
        raise ValueError(f"logits = shape {logits.shape}: expected (*{query.ids.shape[:-1]}, S)")
    log_probs = jax.nn.log_softmax(changed(logits, query), axis=-1)
    at_ids = jnp.take_along_axis(log_probs, query.ids, axis=-1)
    reduced = None if query.reduction is None else reduce(jnp.exp(log_probs), query.reduction)
    return Answer(at_ids, reduced)


def changed(logits: Array, query: Query) -> Array:
    """The logits, at least float32, with the query's shift added in each row and its state suppressed."""
    logits = logits.astype(accumulator(logits.dtype))
    states = jnp.arange(logits.shape[-1], dtype=jnp.int32).reshape((1,) * (logits.ndim - 1) + (-1,))
    if query.shift is not None and query.shift_ids is not None:
        shift = query.shift.astype(logits.dtype)[..., None]
        logits = logits + jnp.where(states == query.shift_ids.astype(jnp.int32)[..., None], shift, 0.0)
    if query.suppress is not None:
        logits = jnp.where(states == query.suppress, -jnp.inf, logits)
    return logits


def logits_of(head: Head, query: Query, features: Array) -> Array:
    """(..., D) -> (..., V): -inf at padding and at the suppressed id, with the shift of each row added."""
    assert head.num_valid is not None
    rows = features.reshape(-1, features.shape[-1])
    out = matmul(rows, head.kernel.astype(features.dtype), ((1,), (0,)))
    out = out + masked_bias(head.bias, accumulator(features.dtype), num_valid=head.num_valid, suppress=None)[None]
    return changed(out.reshape(*features.shape[:-1], -1), query)


def log_probs(head: Head, query: Query, features: Array) -> Answer:
    logits = logits_of(head, query, features)
    plain = dataclasses.replace(query, shift=None, shift_ids=None, suppress=None).padded(logits.shape[-1])
    return dataclasses.replace(answer_from_logits(logits, plain), log_sum_exp=jax.nn.logsumexp(logits, axis=-1))


def draw(values: Array, words: Array, temperature: Array, top_p: float) -> Array:
    """(..., V) logits -> (...) int32: one token from their softmax by two 32-bit words.

    It defines the law of a draw. The probabilities are sorted, and those after mass `top_p` are removed, except that
    ties are kept. The draw is an exponential race with noise from the words.
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
