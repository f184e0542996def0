"""The vocabulary head as Pallas kernels: tiles of logits that never leave the chip.

Forward: one kernel multiplies and keeps an online log-sum-exp beside the logits at the ids; a reduction that needs
normalised probabilities is a second pass over the tiles. Backward: the tiles are multiplied again and leave as dlogits
in the operands' dtype, a few thousand rows at a time, for two plain matrix products. Summing dfeatures and dkernel in
the kernel instead would take a float32 tile of 64 x D in registers, or additions in no fixed order.

The arithmetic is in `vocab_tiles.py`; Mosaic GPU drives it on Hopper and later (`vocab_gpu.py`; why that backend:
`flash.py`), and a plain loop, below, on any other platform.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .vocab_blocks import (
    Gradients,
    Head,
    Rows,
    as_cotangents,
    first_column,
    gathered_cotangents,
    over_shards,
    prepare,
    sum_over_shards,
    vary,
    varying_axes,
)
from .vocab_tiles import COLUMNS, ColumnVectors, Gradient, Pass, Reduction, RowVectors, Statistics
from .vocab_types import LogProbs, Settings, accumulator, matmul


@dataclasses.dataclass(frozen=True)
class Tiles:
    """rows, columns: of a tile of logits; width: of the factors' pieces that stream through fast memory; stages: pieces
    in flight. 128 rows are two warpgroups' on a GPU. columns=0: as many as each pass has registers for."""

    rows: int = 128
    columns: int = 0
    width: int = 64
    stages: int = 4

    def __post_init__(self):
        for name, least in (("rows", 64), ("columns", 0), ("width", 64)):
            if getattr(self, name) < least or getattr(self, name) % 64:
                raise ValueError(f"{name}={getattr(self, name)}: accepted a multiple of 64, at least {least}")
        if self.stages < 2:
            raise ValueError(f"stages={self.stages}: accepted at least 2")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static half of a call, hashable."""

    settings: Settings  # block_rows: rows whose dlogits exist at a time
    tiles: Tiles
    on_gpu: bool


class Operands(NamedTuple):
    """Padded to whole tiles: features (N, D), kernel (D, V), and the vectors of rows (N,) and columns (V,)."""

    features: Array
    kernel: Array
    rows: RowVectors
    cols: ColumnVectors


# Forward ------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_probs(plan: Plan, head: Head, rows: Rows) -> LogProbs:
    return _log_probs(plan, head, rows)[0]


def _log_probs(plan: Plan, head: Head, rows: Rows) -> tuple[LogProbs, Array | None]:
    """And sum_v p_v f'(p_v) of the reduction sum_v f(p_v), (G, L)."""
    settings, kind = plan.settings, plan.settings.kind
    shape = rows.ids.shape[:2]
    given = _operands(plan, prepare(settings, head, rows.features.dtype), rows, plan.tiles.rows)
    lowest = float(jnp.finfo(accumulator(rows.features.dtype)).min)
    online = kind in Statistics.LINEAR
    statistics = Statistics(kind if online else None, rows.ids.shape[-1], lowest)
    peak, mass, *others = (x[: math.prod(shape)].reshape(shape) for x in _run(plan, statistics, given)[0])
    picked = (
        jnp.stack(others[: rows.ids.shape[-1]], -1) if rows.ids.shape[-1] else jnp.zeros(rows.ids.shape, mass.dtype)
    )
    local_peak, (peak, mass, picked) = peak, over_shards(settings, peak, mass, picked)
    log_sum_exp = peak + jnp.log(mass)
    reduced = mean = None
    if online:
        reduced = mean = sum_over_shards(settings, others[-1] * jnp.exp(local_peak - peak) / mass)
    elif kind is not None:
        given = given._replace(rows=given.rows._replace(log_sum_exp=_flat(log_sum_exp, len(given.features), jnp.inf)))
        sums = (x[: math.prod(shape)].reshape(shape) for x in _run(plan, Reduction(kind), given)[0])
        reduced, mean = (sum_over_shards(settings, x) for x in sums)
    return LogProbs((picked - peak[..., None]) - jnp.log(mass)[..., None], log_sum_exp, reduced), mean


def _forward(plan: Plan, head: Head, rows: Rows):
    answer, mean = _log_probs(plan, head, rows)
    return answer, (head, rows, answer.log_sum_exp, mean)


def _operands(plan: Plan, head: Head, rows: Rows, multiple: int) -> Operands:
    """Rows flattened and padded to a multiple, columns and widths to whole tiles: with zeros in the factors, -inf in
    the bias, and ids that match nothing."""
    settings, tiles, columns = plan.settings, plan.tiles, head.kernel.shape[1]
    count, width = math.prod(rows.ids.shape[:2]), head.kernel.shape[0]
    size = count + -count % multiple
    d, v = -width % tiles.width, -columns % (tiles.columns or COLUMNS)
    acc = accumulator(rows.features.dtype)

    def local(ids: Array) -> Array:
        ids = ids - first_column(settings, head)
        return _flat(jnp.where(ids < columns, ids, -1), size, -1)

    def cast(x: Array | None) -> Array | None:
        return None if x is None else _flat(x.astype(acc), size)

    return Operands(
        jnp.pad(rows.features.reshape(count, width), ((0, size - count), (0, d))),
        jnp.pad(head.kernel, ((0, d), (0, v))),
        RowVectors(
            tuple(local(rows.ids[..., k]) for k in range(rows.ids.shape[-1])),
            None if rows.shift_ids is None else local(rows.shift_ids),
            cast(rows.shift_amounts),
            cast(rows.scale),
        ),
        ColumnVectors(
            jnp.pad(head.bias, (0, v), constant_values=-jnp.inf),
            None if head.weights is None else jnp.pad(head.weights, (0, v)),
            None if head.inner is None else jnp.pad(head.inner, (0, v)),
        ),
    )


def _flat(x: Array, size: int, fill: float | int = 0) -> Array:
    """(G, L) -> (size,)."""
    flat = x.reshape(-1)
    return jnp.pad(flat, (0, size - flat.size), constant_values=fill)


# Backward -----------------------------------------------------------------------------------------------------


def _backward(plan: Plan, residuals, cotangent: LogProbs):
    head, rows, log_sum_exp, mean = residuals
    settings, tiles, shape = plan.settings, plan.tiles, rows.ids.shape[:2]
    ready = prepare(settings, head, rows.features.dtype)
    needed = math.ceil(math.prod(shape) / tiles.rows)
    count = math.ceil(needed * tiles.rows / max(settings.block_rows, tiles.rows))
    chunk_rows = math.ceil(needed / count) * tiles.rows
    given = _operands(plan, ready, rows, count * chunk_rows)
    size, width = count * chunk_rows, head.kernel.shape[0]
    g = cotangent.at_ids
    factor = cotangent.log_sum_exp - g.sum(-1)
    if mean is not None:
        factor -= cotangent.reduced * mean
    kept = gathered_cotangents(settings, rows.ids, g)
    vectors = given.rows._replace(
        log_sum_exp=_flat(log_sum_exp, size, jnp.inf),  # probabilities of 0 in the padding, whatever the bias
        factor=_flat(factor, size),
        gathered=tuple(_flat(kept[..., k], size) for k in range(g.shape[-1])),
        reduced=None if settings.kind is None else _flat(cotangent.reduced, size),  # pyright: ignore[reportArgumentType]
    )
    asked = Gradient(
        settings.kind,
        rows.shift_ids is not None,
        rows.scale is not None,
        head.weights is not None,
        head.inner is not None,
    )
    axes = frozenset().union(*(varying_axes(x) for x in jax.tree.leaves((given, vectors))))

    def chunk(total: Head, part: tuple[Array, RowVectors]):
        features, vectors = part
        sums, (dlogits, *others) = _run(plan, asked, Operands(features, given.kernel, vectors, given.cols))
        by_column = [_sum_of_rows(x) for x in (dlogits, *others)]
        found = Head(
            matmul(features, dlogits, ((0,), (0,))),
            by_column[0],
            by_column[1] if asked.weighted else None,
            by_column[-1] if asked.inner else None,
        )
        return jax.tree.map(jnp.add, total, found), (matmul(dlogits, given.kernel, ((1,), (1,))), sums)

    parts = jax.tree.map(lambda x: x.reshape(count, chunk_rows, *x.shape[1:]), (given.features, vectors))
    acc = accumulator(ready.kernel.dtype)
    zeros = jax.tree.map(lambda x: vary(jnp.zeros(x.shape, acc), axes), Head(given.kernel, *given.cols))
    total, (dfeatures, sums) = jax.lax.scan(chunk, zeros, parts)
    dfeatures = dfeatures.reshape(size, -1)[: math.prod(shape), :width].reshape(*shape, width)
    sums = [sum_over_shards(settings, x.reshape(-1)[: math.prod(shape)].reshape(shape)) for x in sums]
    columns = head.kernel.shape[1]
    total = Head(total.kernel[:width], *total[1:])
    gradients = Gradients(
        sum_over_shards(settings, dfeatures),
        sums[0] if asked.shifted else None,
        sums[-1] if asked.scaled else None,
        jax.tree.map(lambda x: x[..., :columns], total),
    )
    return as_cotangents(gradients, head, rows)


def _sum_of_rows(tile: Array) -> Array:
    return tile.sum(0, dtype=accumulator(tile.dtype))


log_probs.defvjp(_forward, _backward)


# Drivers ------------------------------------------------------------------------------------------------------


def _run(plan: Plan, way: Pass, given: Operands) -> tuple[list[Array], list[Array]]:
    """The carried vectors (N,) float32 and the tiles' arrays (N, V), in the operands' dtype, of one pass."""
    axes = frozenset().union(*(varying_axes(x) for x in jax.tree.leaves(given)))
    given = jax.tree.map(lambda x: vary(x, axes), given)  # a kernel's operands and results all vary alike
    tiles = dataclasses.replace(plan.tiles, columns=plan.tiles.columns or way.columns())
    if not plan.on_gpu:
        return _loop(tiles, way, given)
    from . import vocab_gpu  # only where there is something to compile for: it needs a GPU build's modules

    return vocab_gpu.run(tiles, way, given)


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
