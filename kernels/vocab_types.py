"""What the implementations of the vocabulary head share: the vocabulary of its interface, and its checks."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Shift(NamedTuple):
    """Adds `amounts` to one logit of each row, before the softmax. ids (...) int32, amounts (...) float32 < +inf."""

    ids: Array
    amounts: Array


class Reduction(NamedTuple):
    """One sum over the vocabulary per row, of the probabilities p_v after shift and suppression.

    kind 'log1p': sum_v weights_v log1p(scale_n inner_v p_v); kind 'linear': sum_v weights_v p_v; kind 'cotangent':
    sum_v weights_v (1 - y cot y) p_v with y = scale_n inner_v in [0, pi).
    weights, inner: (V,) or (num_valid,) float32, None = ones; scale: (...) float32 per row, None = ones.
    """

    kind: str
    weights: Array | None = None
    scale: Array | None = None
    inner: Array | None = None


class LogProbs(NamedTuple):
    """at_ids (..., K): log p at the ids, nats; log_sum_exp (...); reduced (...) or None. All float32."""

    at_ids: Array
    log_sum_exp: Array
    reduced: Array | None


@dataclasses.dataclass(frozen=True)
class Settings:
    """The static half of a call, hashable."""

    suppress: int | None
    num_valid: int
    kind: str | None  # of the reduction
    axis_name: str | None  # the mesh axis over which the vocabulary is split, inside shard_map
    block_rows: int  # rows along the length per block
    fold: bool  # the gradient of the gathered logits enters the softmax's gradient before its matrix products


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
    """The bias (V,), -inf at padding and at the suppressed id: then the logits need no mask of their own."""
    columns = jnp.arange(bias.shape[0], dtype=jnp.int32) + offset
    excluded = columns >= num_valid
    if suppress is not None:
        excluded |= columns == suppress
    return jnp.where(excluded, -jnp.inf, bias.astype(dtype))


def allowed(ids: Array, *, num_valid: int, suppress: int | None) -> Array:
    """Where an id is neither padding nor suppressed."""
    valid = ids < num_valid
    return valid if suppress is None else valid & (ids != suppress)


def reduce_probs(kind: str, probs: Array, weights: Array | None, scale: Array | None, inner: Array | None) -> Array:
    """(G, R, V) probabilities -> (G, R): `Reduction` by its definition; weights and inner (V,), scale (G, R)."""
    terms = probs
    if kind == "cotangent":
        y = jnp.ones_like(probs)
        if inner is not None:
            y = y * inner[None, None, :]
        if scale is not None:
            y = y * scale[..., None]
        terms = terms * one_minus_y_cot_y(y)
    if kind == "log1p":
        if inner is not None:
            terms = terms * inner[None, None, :]
        if scale is not None:
            terms = terms * scale[..., None]
        terms = jnp.log1p(terms)
    if weights is not None:
        terms = terms * weights[None, None, :]
    return terms.sum(-1)


def one_minus_y_cot_y(y: Array) -> Array:
    """1 - y cot y for y in [0, pi), by its series where the difference would cancel."""
    small = y < 0.1
    square = y * y
    series = square * (1 / 3 + square * (1 / 45 + square * (2 / 945 + square / 4725)))
    safe = jnp.where(small, 1.0, y)
    return jnp.where(small, series, 1 - safe / jnp.tan(safe))


def check(
    features: Array,
    kernel: Array,
    bias: Array,
    ids: Array | None = None,
    *,
    shift: Shift | None,
    suppress: int | None,
    num_valid: int | None,
    reduction: Reduction | None = None,
    shards: int = 1,
) -> int:
    """ValueError where the arguments do not fit together; the number of valid columns of the whole vocabulary."""
    rows = features.shape[:-1]
    if features.ndim < 2 or kernel.ndim != 2 or kernel.shape[0] != features.shape[-1]:
        raise ValueError(f"features {features.shape}, kernel {kernel.shape}: accepted (..., D) and (D, V)")
    columns = kernel.shape[1]
    if bias.shape != (columns,):
        raise ValueError(f"bias {bias.shape}: accepted ({columns},), one per column of the kernel")
    if ids is not None and (ids.shape[:-1] != rows or ids.ndim != features.ndim):
        raise ValueError(f"ids {ids.shape}: accepted {(*rows, 'K')}")
    if shift is not None and not shift.ids.shape == shift.amounts.shape == rows:
        raise ValueError(f"shift {shift.ids.shape}, {shift.amounts.shape}: accepted {rows} twice")
    total = columns * shards
    num_valid = total if num_valid is None else num_valid
    if not 0 < num_valid <= total:
        raise ValueError(f"num_valid={num_valid}: accepted 1 to {total}, the columns of the kernel")
    if suppress is not None and not 0 <= suppress < total:
        raise ValueError(f"suppress={suppress}: accepted 0 to {total - 1}")
    if reduction is not None:
        if reduction.kind not in ("log1p", "linear", "cotangent"):
            raise ValueError(f"reduction.kind={reduction.kind!r}: accepted 'log1p', 'linear', 'cotangent'")
        if reduction.kind == "linear" and not (reduction.scale is None and reduction.inner is None):
            raise ValueError("reduction.kind='linear': accepted weights alone, neither scale nor inner")
        for name in ("weights", "inner"):
            value = getattr(reduction, name)
            sizes = (columns,) if shards > 1 else (columns, num_valid)
            if value is not None and (value.ndim != 1 or value.shape[0] not in sizes):
                raise ValueError(f"reduction.{name} {value.shape}: accepted one of {sizes} entries")
        if reduction.scale is not None and reduction.scale.shape != rows:
            raise ValueError(f"reduction.scale {reduction.scale.shape}: accepted {rows}")
    return num_valid


def pad_columns(value: Array | None, columns: int, dtype) -> Array | None:
    """(num_valid,) or (V,) -> (V,): padding columns have probability zero, whatever the value."""
    if value is None:
        return None
    return jnp.pad(value.astype(dtype), (0, columns - value.shape[0]))
