"""The vocabulary head as Pallas kernels: tiles of logits that never leave the chip.

Forward: one kernel multiplies and keeps an online log-sum-exp beside the logits at the ids; a reduction that needs
normalised probabilities is a second pass over the tiles. Backward: the tiles are multiplied again and leave as dlogits
in the operands' dtype, a few thousand rows at a time, for two plain matrix products. Summing dfeatures and dkernel in
the kernel instead would take a float32 tile of 64 x D in registers, or additions in no fixed order.

The arithmetic is in `pallas_tiles.py`. Mosaic GPU drives it on compute capability 9.0 (`pallas_gpu.py`; why that
backend: `kernels/attention/tiles.py`), and a plain loop, below, on any other platform.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .arithmetic import accumulator, matmul
from .blocks import Gradients, Settings, as_cotangents, gathered_cotangents, gradient_query, prepare
from .pallas_tiles import COLUMNS, ColumnVectors, Gradient, Pass, RowVectors, SecondPass, Statistics
from .shards import first_column, over_shards, sum_over_shards, vary, varying_axes
from .types import Answer, Head, Query, Reduction, Tiles


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static half of a call, hashable."""

    settings: Settings  # block_rows: rows whose dlogits exist at a time
    on_gpu: bool


class Operands(NamedTuple):
    """Padded to whole tiles: features (N, D), kernel (D, V), and the vectors of rows (N,) and columns (V,)."""

    features: Array
    kernel: Array
    rows: RowVectors
    cols: ColumnVectors


# Forward ------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_probs(plan: Plan, head: Head, query: Query, features: Array) -> Answer:
    """Of rows: features (G, L, D), the query's arrays (G, L, ...) and (V,)."""
    return _log_probs(plan, head, query, features)[0]


def _log_probs(plan: Plan, head: Head, query: Query, features: Array) -> tuple[Answer, Array | None]:
    """And sum_v p_v f'(p_v) of the reduction sum_v f(p_v), (G, L)."""
    kind, axis_name, (*shape, num_ids) = query.kind, head.axis_name, query.ids.shape
    given = _operands(prepare(head, query, features.dtype), query, features, head.tiles.rows)
    lowest = float(jnp.finfo(accumulator(features.dtype)).min)
    online = kind in Statistics.LINEAR
    statistics = Statistics(kind if online else None, num_ids, lowest)
    sums = _run(plan, head, statistics, given)[0]
    peak, mass, *others = (x[: math.prod(shape)].reshape(shape) for x in sums)
    picked = jnp.stack(others[:num_ids], -1) if num_ids else jnp.zeros(query.ids.shape, mass.dtype)
    local_peak, (peak, mass, picked) = peak, over_shards(axis_name, peak, mass, picked)
    log_sum_exp = peak + jnp.log(mass)
    reduced = mean = None
    if online:
        reduced = mean = sum_over_shards(axis_name, others[-1] * jnp.exp(local_peak - peak) / mass)
    elif kind is not None:
        given = given._replace(rows=given.rows._replace(log_sum_exp=_flat(log_sum_exp, len(given.features), jnp.inf)))
        sums = (x[: math.prod(shape)].reshape(shape) for x in _run(plan, head, SecondPass(kind), given)[0])
        reduced, mean = (sum_over_shards(axis_name, x) for x in sums)
    return Answer((picked - peak[..., None]) - jnp.log(mass)[..., None], reduced, log_sum_exp), mean


def _forward(plan: Plan, head: Head, query: Query, features: Array):
    answer, mean = _log_probs(plan, head, query, features)
    return answer, (head, query, features, answer.log_sum_exp, mean)


def _operands(head: Head, query: Query, features: Array, multiple: int) -> Operands:
    """Rows flattened and padded to a multiple, columns and widths to whole tiles: with zeros in the factors, -inf in
    the bias, and ids that match nothing."""
    tiles, (width, columns), count = head.tiles, head.kernel.shape, math.prod(features.shape[:2])
    size = count + -count % multiple
    d, v = -width % tiles.width, -columns % (tiles.columns or COLUMNS)
    acc, reduction = accumulator(features.dtype), query.reduction or Reduction("linear")

    def local(ids: Array) -> Array:
        ids = ids - first_column(head)
        return _flat(jnp.where(ids < columns, ids, -1), size, -1)

    def cast(x: Array | None) -> Array | None:
        return None if x is None else _flat(x.astype(acc), size)

    return Operands(
        jnp.pad(features.reshape(count, width), ((0, size - count), (0, d))),
        jnp.pad(head.kernel, ((0, d), (0, v))),
        RowVectors(
            tuple(local(query.ids[..., k]) for k in range(query.ids.shape[-1])),
            None if query.shift_ids is None else local(query.shift_ids),
            cast(query.shift),
            cast(reduction.scale),
        ),
        ColumnVectors(
            jnp.pad(head.bias, (0, v), constant_values=-jnp.inf),
            None if reduction.weights is None else jnp.pad(reduction.weights, (0, v)),
            None if reduction.inner is None else jnp.pad(reduction.inner, (0, v)),
        ),
    )


def _flat(x: Array, size: int, fill: float | int = 0) -> Array:
    """(G, L) -> (size,)."""
    flat = x.reshape(-1)
    return jnp.pad(flat, (0, size - flat.size), constant_values=fill)


# Backward -----------------------------------------------------------------------------------------------------


def _backward(plan: Plan, residuals, cotangent: Answer):
    head, query, features, log_sum_exp, mean = residuals
    tiles, axis_name, shape = head.tiles, head.axis_name, features.shape[:2]
    ready, reduction = prepare(head, query, features.dtype), query.reduction or Reduction("linear")
    needed = math.ceil(math.prod(shape) / tiles.rows)
    count = math.ceil(needed * tiles.rows / max(plan.settings.block_rows, tiles.rows))
    chunk_rows = math.ceil(needed / count) * tiles.rows
    given = _operands(ready, query, features, count * chunk_rows)
    size, (width, columns) = count * chunk_rows, head.kernel.shape
    g = cotangent.at_ids
    assert cotangent.log_sum_exp is not None
    factor = cotangent.log_sum_exp - g.sum(-1)
    if mean is not None:
        factor -= cotangent.reduced * mean
    kept = gathered_cotangents(head, query, g)
    vectors = given.rows._replace(
        log_sum_exp=_flat(log_sum_exp, size, jnp.inf),  # probabilities of 0 in the padding, whatever the bias
        factor=_flat(factor, size),
        gathered=tuple(_flat(kept[..., k], size) for k in range(g.shape[-1])),
        reduced=None if query.reduction is None else _flat(cotangent.reduced, size),  # pyright: ignore[reportArgumentType]
    )
    asked = Gradient(
        query.kind,
        query.shift_ids is not None,
        reduction.scale is not None,
        reduction.weights is not None,
        reduction.inner is not None,
    )
    axes = varying_axes(*jax.tree.leaves((given, vectors)))

    def chunk(total: tuple[Array, ColumnVectors], part: tuple[Array, RowVectors]):
        features, vectors = part
        sums, (dlogits, *others) = _run(plan, head, asked, Operands(features, given.kernel, vectors, given.cols))
        by_column = [_sum_of_rows(x) for x in (dlogits, *others)]
        found = (
            matmul(features, dlogits, ((0,), (0,))),
            ColumnVectors(
                by_column[0], by_column[1] if asked.weighted else None, by_column[-1] if asked.inner else None
            ),
        )
        return jax.tree.map(jnp.add, total, found), (matmul(dlogits, given.kernel, ((1,), (1,))), sums)

    parts = jax.tree.map(lambda x: x.reshape(count, chunk_rows, *x.shape[1:]), (given.features, vectors))
    acc = accumulator(ready.kernel.dtype)
    zeros = jax.tree.map(lambda x: vary(jnp.zeros(x.shape, acc), axes), (given.kernel, given.cols))
    total, (dfeatures, sums) = jax.lax.scan(chunk, zeros, parts)
    dfeatures = dfeatures.reshape(size, -1)[: math.prod(shape), :width].reshape(*shape, width)
    sums = [sum_over_shards(axis_name, x.reshape(-1)[: math.prod(shape)].reshape(shape)) for x in sums]
    dkernel, by_column = jax.tree.map(lambda x: x[..., :columns], total)
    dreduction = None
    if query.reduction is not None:
        dreduction = dataclasses.replace(
            reduction, weights=by_column.weights, scale=sums[-1] if asked.scaled else None, inner=by_column.inner
        )
    gradients = Gradients(
        dataclasses.replace(head, kernel=dkernel[:width], bias=by_column.bias),
        gradient_query(query, sums[0] if asked.shifted else None, dreduction),
        sum_over_shards(axis_name, dfeatures),
    )
    return tuple(as_cotangents(gradients, head, query, features))


def _sum_of_rows(tile: Array) -> Array:
    return tile.sum(0, dtype=accumulator(tile.dtype))


log_probs.defvjp(_forward, _backward)


# Drivers ------------------------------------------------------------------------------------------------------


def _run(plan: Plan, head: Head, way: Pass, given: Operands) -> tuple[list[Array], list[Array]]:
    """The carried vectors (N,) float32 and the tiles' arrays (N, V), in the operands' dtype, of one pass."""
    axes = varying_axes(*jax.tree.leaves(given))
    given = jax.tree.map(lambda x: vary(x, axes), given)  # a kernel's operands and results all vary alike
    tiles = dataclasses.replace(head.tiles, columns=head.tiles.columns or way.columns())
    if not plan.on_gpu:
        return _loop(tiles, way, given)
    from . import pallas_gpu  # only where there is something to compile for: it needs a GPU build's modules

    return pallas_gpu.run(tiles, way, given)


def _loop(tiles: Tiles, way: Pass, given: Operands) -> tuple[list[Array], list[Array]]:
    """What the kernel does, as loops of XLA's over the same tiles: rows of tiles, then the tiles of a row.

    (Pallas' own interpreter does not know along which axes of an enclosing `jax.shard_map` its values vary.)
    """
    (n, width), columns, dtype = given.features.shape, given.kernel.shape[1], given.features.dtype
    count, axes = columns // tiles.columns, varying_axes(given.features)
    pieces = given.kernel.reshape(width, count, tiles.columns).swapaxes(0, 1)
    by_column = jax.tree.map(lambda x: x.reshape(count, tiles.columns), given.cols)
    ids = jax.lax.broadcasted_iota(jnp.int32, (tiles.rows, tiles.columns), 1)

    def row_of_tiles(part: tuple[Array, RowVectors]):
        features, rows = part

        def step(carry: tuple[Array, ...], tile: tuple[Array, Array, ColumnVectors]):
            first, piece, cols = tile
            product, written = matmul(features, piece, ((1,), (0,))), {}

            def write(i: int, value: Array) -> None:
                written[i] = value.astype(dtype)

            carry = way.step(carry, product, ids, rows.from_column(first), cols, write)
            return carry, [written[i] for i in range(way.outputs())]

        start = tuple(vary(jnp.full((tiles.rows,), x, accumulator(dtype)), axes) for x in way.start())
        firsts = jnp.arange(count, dtype=jnp.int32) * tiles.columns
        return jax.lax.scan(step, start, (firsts, pieces, by_column))

    parts = jax.tree.map(lambda x: x.reshape(n // tiles.rows, tiles.rows, *x.shape[1:]), (given.features, given.rows))
    carried, written = jax.lax.map(row_of_tiles, parts)
    return [x.reshape(n) for x in carried], [x.swapaxes(1, 2).reshape(n, columns) for x in written]
