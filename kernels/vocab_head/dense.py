"""The vocabulary head as its definition: the logits, their log-softmax, gradients by differentiation."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from .arithmetic import accumulator, masked_bias, matmul
from .reductions import reduce
from .types import Answer, Drawn, Head, Query


def answer_from_logits(logits: Array, query: Query) -> Answer:
    """The definition of a query's answer: logits (..., S) -> at_ids (..., K), reduced (...), at least float32.

    Raises ValueError when the logits' leading axes are not those of the ids, or the reduction is of no known kind.
    """
    if logits.shape[:-1] != query.ids.shape[:-1]:
        raise ValueError(f"logits = shape {logits.shape}: expected (*{query.ids.shape[:-1]}, S)")
    log_probs = jax.nn.log_softmax(changed(logits, query), axis=-1)
    at_ids = jnp.take_along_axis(log_probs, query.ids, axis=-1)
    reduced = None if query.reduction is None else reduce(jnp.exp(log_probs), query.reduction)
    return Answer(at_ids, reduced)


def changed(logits: Array, query: Query) -> Array:
    """The logits as the query wants them, at least float32: one of each row shifted, one state suppressed."""
    logits = logits.astype(accumulator(logits.dtype))
    states = jnp.arange(logits.shape[-1], dtype=jnp.int32).reshape((1,) * (logits.ndim - 1) + (-1,))
    if query.shift is not None and query.shift_ids is not None:
        shift = query.shift.astype(logits.dtype)[..., None]
        logits = logits + jnp.where(states == query.shift_ids.astype(jnp.int32)[..., None], shift, 0.0)
    if query.suppress is not None:
        logits = jnp.where(states == query.suppress, -jnp.inf, logits)
    return logits


def logits_of(head: Head, query: Query, features: Array) -> Array:
    """(..., D) -> (..., V): -inf at padding and at the suppressed id, one logit of each row shifted."""
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


def look(logits: Array, token: Array, ids: Array | None, asked: frozenset[str]) -> Drawn:
    """The definition of a draw's answers: logits (..., V) of any float type, token (...), ids (..., K)."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    probs = jnp.exp(log_probs)
    answer: dict[str, Array] = {"token": token}
    if "log_prob" in asked:
        answer["log_prob"] = jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
    if "at_ids" in asked and ids is not None:
        answer["at_ids"] = jnp.take_along_axis(log_probs, ids, axis=-1)
    if "entropy" in asked:
        answer["entropy"] = -jnp.where(probs > 0, probs * log_probs, 0.0).sum(-1)
    if "top_two" in asked:
        if logits.shape[-1] == 1:
            probs = jnp.concatenate([probs, jnp.zeros_like(probs)], -1)
        answer["top_two"] = jax.lax.top_k(probs, 2)[0]
    return Drawn(**answer)
