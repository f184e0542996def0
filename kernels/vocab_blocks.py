"""The vocabulary head in blocks of rows: one block's logits exist at a time, forward and backward.

Rows are (G, L): G is never cut, blocks run along L, so that a batch sharded along G stays on its devices. Whole
rows rather than tiles of the vocabulary: the softmax of a block is then one expression, with no online rescaling,
and `summed_loss` can go on to the gradient while the block's logits are still there.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .vocab_types import LogProbs, Settings, accumulator, allowed, masked_bias, matmul, reduce_probs


class Head(NamedTuple):
    """What all rows share. kernel (D, V) in the operands' dtype, the rest (V,) float32."""

    kernel: Array
    bias: Array
    weights: Array | None
    inner: Array | None


class Rows(NamedTuple):
    """What belongs to a row: leaves (G, L, ...)."""

    features: Array
    ids: Array
    shift_ids: Array | None
    shift_amounts: Array | None
    scale: Array | None


# Forward ------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_probs(settings: Settings, head: Head, rows: Rows) -> LogProbs:
    ready = prepare(settings, head, rows.features.dtype)
    return scan_rows(settings, rows, lambda block: answer_of(settings, ready, block)[0])


def _log_probs_forward(settings: Settings, head: Head, rows: Rows):
    answer: LogProbs = log_probs(settings, head, rows)  # pyright: ignore
    return answer, (head, rows, answer.log_sum_exp)


def prepare(settings: Settings, head: Head, dtype) -> Head:
    """The kernel in the operands' dtype and the bias with -inf where nothing may be, once for all blocks."""
    bias = masked_bias(
        head.bias,
        accumulator(dtype),
        num_valid=settings.num_valid,
        suppress=settings.suppress,
        offset=first_column(settings, head),
    )
    return head._replace(kernel=head.kernel.astype(dtype), bias=bias)


def first_column(settings: Settings, head: Head) -> Array | int:
    """The id of this shard's first column."""
    if settings.axis_name is None:
        return 0
    return jax.lax.axis_index(settings.axis_name) * head.kernel.shape[1]


def logits_of(settings: Settings, head: Head, rows: Rows) -> Array:
    """(G, R, D) -> (G, R, V): suppressed, padded, shifted."""
    logits = matmul(rows.features, head.kernel, ((2,), (0,))) + head.bias[None, None, :]
    if rows.shift_ids is None or rows.shift_amounts is None:
        return logits
    columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) + first_column(settings, head)
    shifted = logits + rows.shift_amounts.astype(logits.dtype)[..., None]
    return jnp.where(columns == rows.shift_ids[..., None], shifted, logits)


class Softmax(NamedTuple):
    """Probabilities (G, R, V) as exponentials times a factor per row: what has been computed once is not divided."""

    exponentials: Array
    factor: Array


def answer_of(settings: Settings, head: Head, rows: Rows) -> tuple[LogProbs, Softmax]:
    logits = logits_of(settings, head, rows)
    # The floor keeps a shard of padding alone, or a row whose every logit is -inf, from giving inf - inf.
    peak = local_peak = jnp.maximum(logits.max(-1), jnp.finfo(logits.dtype).min)
    exponentials = jnp.exp(logits - peak[..., None])
    mass = exponentials.sum(-1)
    local = rows.ids - first_column(settings, head)
    inside = (local >= 0) & (local < logits.shape[-1])
    picked = jnp.take_along_axis(logits, jnp.where(inside, local, 0), axis=-1)
    picked = picked if settings.axis_name is None else jnp.where(inside, picked, 0.0)
    peak, mass, picked = over_shards(settings, peak, mass, picked)
    softmax = Softmax(exponentials, jnp.exp(local_peak - peak) / mass)
    reduced = None
    if settings.kind is not None:
        probs = exponentials * softmax.factor[..., None]
        reduced = sum_over_shards(settings, reduce_probs(settings.kind, probs, head.weights, rows.scale, head.inner))
    log_mass = jnp.log(mass)
    return LogProbs((picked - peak[..., None]) - log_mass[..., None], peak + log_mass, reduced), softmax


def over_shards(settings: Settings, peak: Array, mass: Array, picked: Array) -> tuple[Array, Array, Array]:
    """Each shard's maximum, sum of exponentials below it and logits at the ids (0 where not its own), of the whole."""
    if settings.axis_name is None:
        return peak, mass, picked
    peaks, masses, picked = gather_shards(settings.axis_name, peak, mass, picked)
    peak = peaks.max(0)
    return peak, (masses * jnp.exp(peaks - peak[None])).sum(0), picked.sum(0)


def gather_shards(axis_name: str, *values: Array) -> list[Array]:
    """Each (...) -> (shards, ...), the same on every shard, in one collective.

    A sum of one-hot slots, and not an all-gather, because its result is known to be replicated.
    """
    flat = jnp.concatenate([value.reshape(-1) for value in values])
    slots = jnp.zeros((jax.lax.axis_size(axis_name), flat.size), flat.dtype)
    slots = jax.lax.psum(jax.lax.dynamic_update_index_in_dim(slots, flat, jax.lax.axis_index(axis_name), 0), axis_name)
    parts = jnp.split(slots, list(_offsets([value.size for value in values])), axis=1)
    return [part.reshape(slots.shape[0], *value.shape) for part, value in zip(parts, values, strict=True)]


def _offsets(sizes: list[int]) -> list[int]:
    return [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]


def sum_over_shards(settings: Settings, value: Array) -> Array:
    return value if settings.axis_name is None else jax.lax.psum(value, settings.axis_name)


# Backward -----------------------------------------------------------------------------------------------------


class Gradients(NamedTuple):
    """Of one block: rows' part (G, R, ...) and the head's part, both without the gathered logits' if not `fold`."""

    features: Array
    shift_amounts: Array | None
    scale: Array | None
    head: Head


def gradients_of(settings: Settings, head: Head, rows: Rows, softmax: Softmax, cotangent: LogProbs) -> Gradients:
    """dlogits = softmax (g_lse - sum_k g_k + reduction's part) + scatter(g), and its products."""
    g, offset = cotangent.at_ids, first_column(settings, head)
    # dlogits are matrix * factor: in the plain case no pass over the block is needed to form them.
    matrix, factor = softmax.exponentials, softmax.factor * (cotangent.log_sum_exp - g.sum(-1))
    dweights = dscale = dinner = None
    if settings.kind is not None:
        kind = settings.kind
        probs = matrix * softmax.factor[..., None]
        # Each shard's own part, to be summed below: not the sum that differentiating a replicated array gives.
        axes = varying_axes(probs)
        scale = None if rows.scale is None else vary(rows.scale, axes)
        _, pullback = jax.vjp(
            lambda p, weights, scale, inner: reduce_probs(kind, p, weights, scale, inner),
            probs, head.weights, scale, head.inner,
        )  # fmt: skip
        dprobs, dweights, dscale, dinner = pullback(vary(cotangent.reduced, axes))  # pyright: ignore
        mean = sum_over_shards(settings, (probs * dprobs).sum(-1))
        matrix = matrix * factor[..., None] + probs * (dprobs - mean[..., None])
        factor = jnp.ones_like(factor)
        dscale = None if dscale is None else sum_over_shards(settings, dscale)
    if settings.fold:
        matrix, factor = matrix * factor[..., None], jnp.ones_like(factor)
        columns = jax.lax.broadcasted_iota(jnp.int32, matrix.shape, 2) + offset
        kept = gathered_cotangents(settings, rows.ids, g)
        for k in range(g.shape[-1]):
            matrix += jnp.where(columns == rows.ids[..., k : k + 1], kept[..., k : k + 1], 0.0)
    damounts = None
    if rows.shift_ids is not None:
        local = rows.shift_ids - offset
        inside = (local >= 0) & (local < matrix.shape[-1])
        damounts = factor * jnp.take_along_axis(matrix, jnp.where(inside, local, 0)[..., None], axis=-1)[..., 0]
        damounts = sum_over_shards(settings, jnp.where(inside, damounts, 0.0))
        if not settings.fold:
            hit = rows.ids == rows.shift_ids[..., None]
            damounts += jnp.where(hit, gathered_cotangents(settings, rows.ids, g), 0.0).sum(-1)
    dtype = rows.features.dtype
    dfeatures = matmul(matrix.astype(dtype), head.kernel, ((2,), (1,))) * factor[..., None]
    # The transpose is made on its own, which takes 40 % off the product on a CPU; likewise the sum over rows.
    left = (rows.features * factor.astype(dtype)[..., None]).reshape(-1, rows.features.shape[-1])
    left, rows_of = jax.lax.optimization_barrier(left.T), (-1, matrix.shape[-1])
    dkernel = matmul(left, matrix.astype(dtype).reshape(rows_of), ((1,), (0,)))
    dbias = matmul(factor.reshape(-1), matrix.reshape(rows_of), ((0,), (0,)))
    return Gradients(sum_over_shards(settings, dfeatures), damounts, dscale, Head(dkernel, dbias, dweights, dinner))


def gathered_cotangents(settings: Settings, ids: Array, g: Array) -> Array:
    """The cotangents of the gathered logits that depend on something: not those of suppressed ids."""
    return jnp.where(allowed(ids, num_valid=settings.num_valid, suppress=settings.suppress), g, 0.0)


def add_gathered(settings: Settings, head: Head, rows: Rows, gradients: Gradients, g: Array) -> Gradients:
    """Adds the gathered logits' part in float32, on the few columns concerned.

    Folding it into dlogits costs a CPU half as much again as the rest. With bfloat16 operands it must be folded,
    since p - 1 is small where p is near 1 and has to be formed before it is rounded; on a GPU folding is free, and
    a scatter's order of additions is not deterministic.
    """
    kernel, bias = head.kernel, gradients.head.bias
    local = rows.ids - first_column(settings, head)
    inside = (local >= 0) & (local < kernel.shape[1])
    g = jnp.where(inside, gathered_cotangents(settings, rows.ids, g), 0.0)
    local = jnp.where(inside, local, 0)
    columns = jnp.take(kernel.T, local, axis=0)  # (G, L, K, D)
    dfeatures = sum_over_shards(settings, (columns * g[..., None]).sum(-2))
    flat = local.reshape(-1)
    products = (rows.features[..., None, :] * g[..., None]).reshape(flat.size, -1)
    dkernel = gradients.head.kernel.at[:, flat].add(products.T)
    return gradients._replace(
        features=gradients.features + dfeatures,
        head=gradients.head._replace(kernel=dkernel, bias=bias.at[flat].add(g.reshape(-1))),
    )


def _log_probs_backward(settings: Settings, residuals, cotangent: LogProbs):
    head, rows, log_sum_exp = residuals
    ready = prepare(settings, head, rows.features.dtype)

    def block(operands: tuple[Rows, Array], cotangent: LogProbs):
        rows, log_sum_exp = operands
        exponentials = jnp.exp(logits_of(settings, ready, rows) - log_sum_exp[..., None])
        found = gradients_of(settings, ready, rows, Softmax(exponentials, jnp.ones_like(log_sum_exp)), cotangent)
        return found._replace(head=None), found.head

    by_row, total = sum_rows(settings, (rows, log_sum_exp), cotangent, block, ready)
    gradients = by_row._replace(head=total)
    if not settings.fold:
        gradients = add_gathered(settings, ready, rows, gradients, cotangent.at_ids)
    return as_cotangents(gradients, head, rows)


def as_cotangents(gradients: Gradients, head: Head, rows: Rows) -> tuple[Head, Rows]:
    dhead = jax.tree.map(lambda g, x: g.astype(x.dtype), gradients.head, head)
    drows = Rows(
        features=gradients.features.astype(rows.features.dtype),
        ids=None,  # pyright: ignore
        shift_ids=None,
        shift_amounts=_cast(gradients.shift_amounts, rows.shift_amounts),
        scale=_cast(gradients.scale, rows.scale),
    )
    return dhead, drows


def _cast(value: Array | None, like: Array | None) -> Array | None:
    return None if value is None or like is None else value.astype(like.dtype)


log_probs.defvjp(_log_probs_forward, _log_probs_backward)


# Blocks -------------------------------------------------------------------------------------------------------


def scan_rows(settings: Settings, rows: Any, function: Callable) -> Any:
    """`function` on every block of rows (leaves (G, L, ...)), its results joined again."""
    cut, join, count = _blocks(settings, rows)
    if count == 1:
        return function(rows)
    _, answers = jax.lax.scan(lambda carry, block: (carry, function(block)), None, cut(rows, "edge"))
    return join(answers)


def sum_rows(settings: Settings, rows: Any, cotangents: Any, function: Callable, like: Head) -> tuple[Any, Head]:
    """`function(rows, cotangents)` on every block: its first results joined, its second, like `like`, summed.

    The last block is filled up with copies of the last row, finite where that is, and cotangents of zero.
    """
    cut, join, count = _blocks(settings, rows)
    if count == 1:
        return function(rows, cotangents)

    def step(total: Head, block: tuple[Any, Any]):
        answer, part = function(*block)
        return jax.tree.map(jnp.add, total, part), answer

    acc = accumulator(like.kernel.dtype)
    zeros = jax.tree.map(lambda x: vary(jnp.zeros(x.shape, acc), varying_axes(x)), like)
    total, answers = jax.lax.scan(step, zeros, (cut(rows, "edge"), cut(cotangents, "constant")))
    return join(answers), total


def _blocks(settings: Settings, rows: Any) -> tuple[Callable, Callable, int]:
    """How to cut (G, L, ...) into (blocks, G, block_rows, ...), how to join them again, and how many there are."""
    length = jax.tree.leaves(rows)[0].shape[1]
    size = min(settings.block_rows, length)
    count = math.ceil(length / size)

    def cut(x: Array, mode: str) -> Array:
        x = jnp.pad(x, [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2), mode=mode)
        return jnp.swapaxes(x.reshape(x.shape[0], count, size, *x.shape[2:]), 0, 1)

    def join(x: Array) -> Array:
        x = jnp.swapaxes(x, 0, 1)
        return x.reshape(x.shape[0], count * size, *x.shape[3:])[:, :length]

    return (
        lambda tree, mode: jax.tree.map(lambda x: cut(x, mode), tree),
        lambda tree: jax.tree.map(join, tree),
        count,
    )


def vary(x: Array, axes) -> Array:
    """x as differing between the devices along `axes` of an enclosing shard_map; the gradient is then summed there."""
    missing = tuple(sorted(frozenset(axes) - varying_axes(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def varying_axes(x: Array) -> frozenset[str]:
    """The axes of an enclosing shard_map along which x may differ between devices."""
    return jax.typeof(x).manual_axis_type.varying
