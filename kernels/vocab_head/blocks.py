"""The vocabulary head in blocks of rows. Only the logits of one block exist at a time, forward and backward.

Rows are (G, L). Blocks are cut along L and never along G, so that a batch sharded along G stays on its devices. A block
holds whole rows, not tiles of the vocabulary. So its softmax needs no online rescaling, and `summed_loss` can compute
the gradient while the logits of the block still exist.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .. import target as targets
from .arithmetic import accumulator, allowed, masked_bias, matmul
from .reductions import reduce
from .shards import first_column, over_shards, sum_over_shards, vary, varying_axes
from .types import Answer, Head, Query


@dataclasses.dataclass(frozen=True)
class Settings:
    """The static arguments of a call beside those in head and query; hashable."""

    block_rows: int  # rows along the length per block
    fold: bool  # whether the gradient of the gathered logits is added to dlogits before the matrix products


# Forward ------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_probs(settings: Settings, head: Head, query: Query, features: Array) -> Answer:
    """The answer at features (G, L, D), for a query with arrays (G, L, ...) and (V,)."""
    ready, columns = prepare(head, query, features.dtype), query.by_column()

    def block(operands: tuple[Query, Array]) -> Answer:
        rows, features = operands
        return answer_of(ready, rows.joined(columns), features)[0]

    return scan_rows(settings, (query.by_row(), features), block)


def log_probs_of_each(
    settings: Settings, head: Head, queries: tuple[Query, ...], features: Array
) -> tuple[Answer, ...]:
    """`log_probs` of several queries: XLA finds that they share the logits of a block. For use without gradients."""
    asked = tuple((prepare(head, query, features.dtype), query.by_column()) for query in queries)

    def block(operands: tuple[tuple[Query, ...], Array]) -> tuple[Answer, ...]:
        rows, features = operands
        each = zip(asked, rows, strict=True)
        return tuple(answer_of(ready, row.joined(columns), features)[0] for (ready, columns), row in each)

    return scan_rows(settings, (tuple(query.by_row() for query in queries), features), block)


def _log_probs_forward(settings: Settings, head: Head, query: Query, features: Array):
    answer: Answer = log_probs(settings, head, query, features)  # pyright: ignore
    return answer, (head, query, features, answer.log_sum_exp)


def prepare(head: Head, query: Query, dtype) -> Head:
    """The head for all blocks: its kernel in `dtype`, and -inf in the bias at padding and the suppressed id."""
    assert head.num_valid is not None
    bias = masked_bias(
        head.bias,
        accumulator(dtype),
        num_valid=head.num_valid,
        suppress=query.suppress,
        offset=first_column(head),
    )
    return dataclasses.replace(head, kernel=head.kernel.astype(dtype), bias=bias)


def logits_of(head: Head, query: Query, features: Array) -> Array:
    """(G, R, D) -> (G, R, V): suppressed, padded, shifted."""
    logits = matmul(features, head.kernel, ((2,), (0,))) + head.bias[None, None, :]
    if query.shift_ids is None or query.shift is None:
        return logits
    columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) + first_column(head)
    shifted = logits + query.shift.astype(logits.dtype)[..., None]
    return jnp.where(columns == query.shift_ids[..., None], shifted, logits)


class Softmax(NamedTuple):
    """Probabilities (G, R, V) as exponentials times a factor per row, which saves a division of the whole block."""

    exponentials: Array
    factor: Array


def answer_of(head: Head, query: Query, features: Array) -> tuple[Answer, Softmax]:
    """The answer at the rows of one block, and the softmax of its logits."""
    logits = logits_of(head, query, features)
    if targets.current().is_gpu:
        peak, mass = peak_and_mass(logits)
        exponentials = jnp.exp(logits - peak[..., None])
    else:
        # Without the floor a shard of padding only, or a row of -inf, would give inf - inf.
        peak = jnp.maximum(logits.max(-1), jnp.finfo(logits.dtype).min)
        exponentials = jnp.exp(logits - peak[..., None])
        mass = exponentials.sum(-1)
    local_peak = peak
    local = query.ids - first_column(head)
    inside = (local >= 0) & (local < logits.shape[-1])
    picked = jnp.take_along_axis(logits, jnp.where(inside, local, 0), axis=-1)
    picked = picked if head.axis_name is None else jnp.where(inside, picked, 0.0)
    peak, mass, picked = over_shards(head.axis_name, peak, mass, picked)
    softmax = Softmax(exponentials, jnp.exp(local_peak - peak) / mass)
    reduced = None
    if query.reduction is not None:
        probs = exponentials * softmax.factor[..., None]
        reduced = sum_over_shards(head.axis_name, reduce(probs, query.reduction))
    log_mass = jnp.log(mass)
    return Answer((picked - peak[..., None]) - log_mass[..., None], reduced, peak + log_mass), softmax


def peak_and_mass(logits: Array) -> tuple[Array, Array]:
    """(max, sum of exp(logits - max)) over the last axis in one pass: a GPU reads the logits once. Slow on a CPU.

    A pair (m, s) stands for s exp(m). The sum of two pairs has the larger m. A logit of -inf is (finite, 0).
    """
    floor = jnp.array(jnp.finfo(logits.dtype).min, logits.dtype)

    def add(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        peak = jnp.maximum(one[0], other[0])
        return peak, one[1] * jnp.exp(one[0] - peak) + other[1] * jnp.exp(other[0] - peak)

    terms = jnp.maximum(logits, floor), (logits > floor).astype(logits.dtype)
    return jax.lax.reduce(terms, (floor, jnp.zeros((), logits.dtype)), add, (logits.ndim - 1,))


# Backward -----------------------------------------------------------------------------------------------------


class Gradients(NamedTuple):
    """The gradients of one block, in the shapes of head, query and features. `fold` adds the gathered logits' part."""

    head: Head
    query: Query
    features: Array


def gradients_of(
    settings: Settings, head: Head, query: Query, features: Array, softmax: Softmax, cotangent: Answer
) -> Gradients:
    """The gradients from dlogits = softmax (g_lse - sum_k g_k + the reduction's part) + scatter(g)."""
    g, offset = cotangent.at_ids, first_column(head)
    assert cotangent.log_sum_exp is not None
    # dlogits are matrix * factor. Without a reduction this needs no pass over the block.
    matrix, factor = softmax.exponentials, softmax.factor * (cotangent.log_sum_exp - g.sum(-1))
    dreduction = None
    if query.reduction is not None:
        probs = matrix * softmax.factor[..., None]
        # Differentiating a replicated array would sum over the shards. Here each shard keeps its part, summed below.
        axes = varying_axes(probs)
        scale = None if query.reduction.scale is None else vary(query.reduction.scale, axes)
        _, pullback = jax.vjp(reduce, probs, dataclasses.replace(query.reduction, scale=scale))
        dprobs, dreduction = pullback(vary(cotangent.reduced, axes))  # pyright: ignore
        mean = sum_over_shards(head.axis_name, (probs * dprobs).sum(-1))
        matrix = matrix * factor[..., None] + probs * (dprobs - mean[..., None])
        factor = jnp.ones_like(factor)
        if scale is not None:
            dreduction = dataclasses.replace(dreduction, scale=sum_over_shards(head.axis_name, dreduction.scale))
    if settings.fold:
        matrix, factor = matrix * factor[..., None], jnp.ones_like(factor)
        columns = jax.lax.broadcasted_iota(jnp.int32, matrix.shape, 2) + offset
        kept = gathered_cotangents(head, query, g)
        for k in range(g.shape[-1]):
            matrix += jnp.where(columns == query.ids[..., k : k + 1], kept[..., k : k + 1], 0.0)
    dshift = None
    if query.shift_ids is not None:
        local = query.shift_ids - offset
        inside = (local >= 0) & (local < matrix.shape[-1])
        dshift = factor * jnp.take_along_axis(matrix, jnp.where(inside, local, 0)[..., None], axis=-1)[..., 0]
        dshift = sum_over_shards(head.axis_name, jnp.where(inside, dshift, 0.0))
        if not settings.fold:
            hit = query.ids == query.shift_ids[..., None]
            dshift += jnp.where(hit, gathered_cotangents(head, query, g), 0.0).sum(-1)
    dtype = features.dtype
    dfeatures = matmul(matrix.astype(dtype), head.kernel, ((2,), (1,))) * factor[..., None]
    # A separate transpose makes the product 40 % faster on a CPU. The sum over rows is a product with ones likewise.
    left = (features * factor.astype(dtype)[..., None]).reshape(-1, features.shape[-1])
    left, rows_of = jax.lax.optimization_barrier(left.T), (-1, matrix.shape[-1])
    dkernel = matmul(left, matrix.astype(dtype).reshape(rows_of), ((1,), (0,)))
    dbias = matmul(factor.reshape(-1), matrix.reshape(rows_of), ((0,), (0,)))
    return Gradients(
        dataclasses.replace(head, kernel=dkernel, bias=dbias),
        gradient_query(query, dshift, dreduction),
        sum_over_shards(head.axis_name, dfeatures),
    )


def gradient_query(query: Query, dshift: Array | None, dreduction: Any) -> Query:
    """The gradient of a query, without its integer arrays."""
    return dataclasses.replace(query, ids=None, shift_ids=None, shift=dshift, reduction=dreduction)  # pyright: ignore


def gathered_cotangents(head: Head, query: Query, g: Array) -> Array:
    """The cotangents g of the gathered logits, 0 at suppressed ids and padding."""
    assert head.num_valid is not None
    return jnp.where(allowed(query.ids, num_valid=head.num_valid, suppress=query.suppress), g, 0.0)


def add_gathered(head: Head, query: Query, features: Array, gradients: Gradients, g: Array) -> Gradients:
    """Adds the gathered logits' part in float32, on the few columns concerned.

    On a CPU, folding it into dlogits costs half as much as all the rest. With bfloat16 operands it must be folded:
    where p is near 1, p - 1 has to be computed before it is rounded. On a GPU folding is free, and a scatter would add
    in no fixed order.
    """
    kernel, bias = head.kernel, gradients.head.bias
    local = query.ids - first_column(head)
    inside = (local >= 0) & (local < kernel.shape[1])
    g = jnp.where(inside, gathered_cotangents(head, query, g), 0.0)
    local = jnp.where(inside, local, 0)
    columns = jnp.take(kernel.T, local, axis=0)  # (G, L, K, D)
    dfeatures = sum_over_shards(head.axis_name, (columns * g[..., None]).sum(-2))
    flat = local.reshape(-1)
    products = (features[..., None, :] * g[..., None]).reshape(flat.size, -1)
    dkernel = gradients.head.kernel.at[:, flat].add(products.T)
    return gradients._replace(
        features=gradients.features + dfeatures,
        head=dataclasses.replace(gradients.head, kernel=dkernel, bias=bias.at[flat].add(g.reshape(-1))),
    )


def _log_probs_backward(settings: Settings, residuals, cotangent: Answer):
    head, query, features, log_sum_exp = residuals
    ready, columns = prepare(head, query, features.dtype), query.by_column()

    def block(operands: tuple[Query, Array, Array], cotangent: Answer):
        rows, features, log_sum_exp = operands
        query = rows.joined(columns)
        exponentials = jnp.exp(logits_of(ready, query, features) - log_sum_exp[..., None])
        softmax = Softmax(exponentials, jnp.ones_like(log_sum_exp))
        return split(gradients_of(settings, ready, query, features, softmax, cotangent))

    operands = (query.by_row(), features, log_sum_exp)
    by_row, total = sum_rows(settings, operands, cotangent, block, (ready, columns))
    gradients = join(by_row, total)
    if not settings.fold:
        gradients = add_gathered(ready, query, features, gradients, cotangent.at_ids)
    return tuple(as_cotangents(gradients, head, query, features))


def split(gradients: Gradients) -> tuple[tuple[Query, Array], tuple[Head, Query]]:
    """The gradients of a block per row, which blocks concatenate, and per column, which blocks add."""
    return (gradients.query.by_row(), gradients.features), (gradients.head, gradients.query.by_column())


def join(by_row: tuple[Query, Array], by_column: tuple[Head, Query]) -> Gradients:
    """The inverse of `split`."""
    return Gradients(by_column[0], by_row[0].joined(by_column[1]), by_row[1])


def as_cotangents(gradients: Gradients, head: Head, query: Query, features: Array) -> Gradients:
    """The gradients in the dtypes of head, query and features."""
    given = Gradients(head, dataclasses.replace(query, ids=None, shift_ids=None), features)  # pyright: ignore
    return jax.tree.map(lambda g, x: g.astype(x.dtype), gradients, given)


log_probs.defvjp(_log_probs_forward, _log_probs_backward)


# Blocks -------------------------------------------------------------------------------------------------------


def scan_rows(settings: Settings, rows: Any, function: Callable) -> Any:
    """Applies `function` to each block of rows (leaves (G, L, ...)) and joins the results."""
    cut, join, count = _blocks(settings, rows)
    if count == 1:
        return function(rows)
    _, answers = jax.lax.scan(lambda carry, block: (carry, function(block)), None, cut(rows, "edge"))
    return join(answers)


def sum_rows(settings: Settings, rows: Any, cotangents: Any, function: Callable, like: Any) -> tuple[Any, Any]:
    """Applies `function(rows, cotangents)` to each block. Joins its first results and sums its second ones.

    `like` has the structure of the second results. The last block is padded with copies of the last row, which are
    finite if that row is, and with cotangents of zero.
    """
    cut, join, count = _blocks(settings, rows)
    if count == 1:
        return function(rows, cotangents)

    def step(total: Any, block: tuple[Any, Any]):
        answer, part = function(*block)
        return jax.tree.map(jnp.add, total, part), answer

    acc = accumulator(jax.tree.leaves(like)[0].dtype)
    zeros = jax.tree.map(lambda x: vary(jnp.zeros(x.shape, acc), varying_axes(x)), like)
    total, answers = jax.lax.scan(step, zeros, (cut(rows, "edge"), cut(cotangents, "constant")))
    return join(answers), total


def _blocks(settings: Settings, rows: Any) -> tuple[Callable, Callable, int]:
    """A function that cuts (G, L, ...) into (blocks, G, block_rows, ...), one that joins them, and their number."""
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
