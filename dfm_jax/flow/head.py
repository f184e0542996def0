"""What a loss asks of the vocabulary head, and what it gets: a loss never sees logits.

Every mixture-path loss needs log-probabilities at a few ids per position, and at most one weighted reduction over the
vocabulary. A head that fuses these with its softmax (`kernels.vocab`) answers the same query as `answer_from_logits`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.flow.time import floating


class VocabReduction(NamedTuple):
    """One sum over the S states of the probabilities p_v of a position n.

    'log1p': sum_v weights_v log1p(scale_n inner_v p_v). 'linear': sum_v weights_v p_v. 'cotangent': sum_v weights_v
    (1 - y cot y) p_v, y = scale_n inner_v in [0, pi). None stands for ones.
    """

    kind: str
    weights: jax.Array | None = None  # (S,)
    scale: jax.Array | None = None  # (B, L)
    inner: jax.Array | None = None  # (S,)


class HeadQuery(NamedTuple):
    """log-probabilities wanted at `ids` (B, L, K), of the softmax of logits that are first changed:

    `shift` (B, L) is added to the logit at `shift_ids` (B, L), and the state `suppress` gets the logit -inf.
    """

    ids: jax.Array
    shift: jax.Array | None = None
    shift_ids: jax.Array | None = None
    suppress: int | None = None
    reduction: VocabReduction | None = None


class HeadAnswer(NamedTuple):
    """`at_ids` (B, L, K) log-probabilities in nats, and the query's reduction `reduced` (B, L)."""

    at_ids: jax.Array
    reduced: jax.Array | None = None


def answer_from_logits(logits: jax.Array, query: HeadQuery) -> HeadAnswer:
    """The dense definition of a query's answer: logits (B, L, S), at least float32 inside.

    Raises ValueError when the logits' leading axes are not those of the ids.
    """
    if logits.shape[:-1] != query.ids.shape[:-1]:
        raise ValueError(f"logits of shape {logits.shape}: accepted (*{query.ids.shape[:-1]}, S)")
    logits = floating(logits)
    states = jnp.arange(logits.shape[-1], dtype=query.ids.dtype).reshape((1,) * (logits.ndim - 1) + (-1,))
    if query.shift is not None and query.shift_ids is not None:
        shift = query.shift.astype(logits.dtype)[..., None]
        logits = logits + jnp.where(states == query.shift_ids[..., None], shift, 0.0)
    if query.suppress is not None:
        logits = jnp.where(states == query.suppress, -jnp.inf, logits)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    at_ids = jnp.take_along_axis(log_probs, query.ids, axis=-1)
    reduced = None if query.reduction is None else _reduce(jnp.exp(log_probs), query.reduction)
    return HeadAnswer(at_ids, reduced)


def _reduce(probs: jax.Array, reduction: VocabReduction) -> jax.Array:
    if reduction.kind not in ("log1p", "linear", "cotangent"):
        raise ValueError(f"kind={reduction.kind!r}: accepted log1p, linear, cotangent")
    terms = probs
    if reduction.kind == "cotangent":
        y = jnp.ones_like(probs)
        if reduction.inner is not None:
            y = y * _over_states(reduction.inner, probs)
        if reduction.scale is not None:
            y = y * reduction.scale.astype(probs.dtype)[..., None]
        terms = terms * one_minus_y_cot_y(y)
    if reduction.kind == "log1p":
        if reduction.inner is not None:
            terms = terms * _over_states(reduction.inner, probs)
        if reduction.scale is not None:
            terms = terms * reduction.scale.astype(probs.dtype)[..., None]
        terms = jnp.log1p(terms)
    if reduction.weights is not None:
        terms = terms * _over_states(reduction.weights, probs)
    return terms.sum(axis=-1)


def one_minus_y_cot_y(y: jax.Array) -> jax.Array:
    """1 - y cot y for y in [0, pi): how much slower than 1/sigma a kinetic-optimal token is, at y = sigma W."""
    small = y < 0.1
    square = y * y
    series = square * (1 / 3 + square * (1 / 45 + square * (2 / 945 + square / 4725)))
    safe = jnp.where(small, 1.0, y)
    return jnp.where(small, series, 1 - safe / jnp.tan(safe))


def _over_states(vector: jax.Array, probs: jax.Array) -> jax.Array:
    return vector.astype(probs.dtype).reshape((1,) * (probs.ndim - 1) + (-1,))
