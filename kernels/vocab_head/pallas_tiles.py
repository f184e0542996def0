"""The arithmetic of the vocabulary head on one tile of rows x columns of the logits, for its Pallas kernels.

A pass goes over all tiles of a row of tiles and carries a few numbers per row. Each is written once, here, on plain
arrays, and driven twice: by a loop (`pallas.py`) and on the matrix unit of a GPU (`pallas_gpu.py`). Only
operations that Mosaic GPU has are used.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from .reductions import SUMMANDS, Summand


class RowVectors(NamedTuple):
    """One number per row, (R,) each; None or () where a pass has no use for it."""

    ids: tuple[Array, ...]  # int32, columns of this shard: one outside them matches nothing
    shift_ids: Array | None  # int32
    shift_amounts: Array | None
    scale: Array | None
    log_sum_exp: Array | None = None
    factor: Array | None = None  # of the probabilities in dlogits
    gathered: tuple[Array, ...] = ()  # cotangents of the log-probabilities at `ids`
    reduced: Array | None = None  # cotangent of the reduction

    def from_column(self, first: Array) -> "RowVectors":
        """With ids counted from the column `first`: a tile's own columns are then the same numbers for every tile."""
        shift_ids = None if self.shift_ids is None else self.shift_ids - first
        return self._replace(ids=tuple(ids - first for ids in self.ids), shift_ids=shift_ids)


class ColumnVectors(NamedTuple):
    """One number per column, (C,) each. bias is -inf where nothing may be."""

    bias: Array
    weights: Array | None
    inner: Array | None


COLUMNS = 256  # a multiple of every pass's tile


class Pass(Protocol):
    """One way over the vocabulary. `step` returns the carried vectors (R,) and calls write(i, tile) for each tile
    (R, C) that leaves, as soon as it is there."""

    def start(self) -> tuple[float, ...]: ...
    def columns(self) -> int: ...  # of the widest tile whose arithmetic fits an H100's registers
    def outputs(self) -> int: ...  # tiles that a step writes
    def step(
        self,
        carry: tuple[Array, ...],
        product: Array,
        columns: Array,
        rows: RowVectors,
        cols: ColumnVectors,
        write: Callable[[int, Array], None],
    ) -> tuple[Array, ...]: ...


def along_rows(vector: Array, like: Array) -> Array:
    """(R,) -> (R, C)."""
    return jax.lax.broadcast_in_dim(vector, like.shape, (0,))


def along_columns(vector: Array, like: Array) -> Array:
    """(C,) -> (R, C)."""
    return jax.lax.broadcast_in_dim(vector, like.shape, (1,))


def logits_of(product: Array, columns: Array, rows: RowVectors, cols: ColumnVectors) -> Array:
    logits = product + along_columns(cols.bias, product)
    if rows.shift_ids is None or rows.shift_amounts is None:
        return logits
    here = columns == along_rows(rows.shift_ids, columns)
    return logits + jnp.where(here, along_rows(rows.shift_amounts, logits), 0.0)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Online softmax: the running maximum, the sum of exponentials below it, the logits at the ids, and the reduction
    (times the sum) of the kinds that are linear in the probabilities."""

    kind: str | None
    num_ids: int
    lowest: float  # finite: -inf - -inf is no number

    LINEAR: ClassVar[tuple[str, ...]] = ("linear", "cotangent")

    def start(self) -> tuple[float, ...]:
        return self.lowest, 0.0, *(0.0,) * (self.num_ids + (self.kind in self.LINEAR))

    def columns(self) -> int:
        return COLUMNS if self.kind is None else 128

    def outputs(self) -> int:
        return 0

    def step(self, carry, product, columns, rows, cols, write):
        logits = logits_of(product, columns, rows, cols)
        peak, mass, *others = carry
        higher = jnp.maximum(peak, logits.max(1))
        exponentials = jnp.exp(logits - along_rows(higher, logits))
        shrink = jnp.exp(peak - higher)
        mass = mass * shrink + exponentials.sum(1)
        for k, ids in enumerate(rows.ids):
            others[k] += jnp.where(columns == along_rows(ids, columns), logits, 0.0).sum(1)
        if self.kind in self.LINEAR:
            value = summand_of(self.kind, exponentials, rows, cols).value()
            others[-1] = others[-1] * shrink + value.sum(1)
        return higher, mass, *others


@dataclasses.dataclass(frozen=True)
class SecondPass:
    """sum_v f(p_v) and sum_v p_v f'(p_v), for a kind that needs the normalised probabilities."""

    kind: str

    def start(self) -> tuple[float, ...]:
        return 0.0, 0.0

    def columns(self) -> int:
        return 128

    def outputs(self) -> int:
        return 0

    def step(self, carry, product, columns, rows, cols, write):
        probs = _probs(product, columns, rows, cols)
        summand = summand_of(self.kind, probs, rows, cols)
        reduced, mean = carry
        return reduced + summand.value().sum(1), mean + (probs * summand.by_probs()).sum(1)


@dataclasses.dataclass(frozen=True)
class Gradient:
    """Tiles of dlogits = p (factor + g f'(p)) + sum_k 1[column = id_k] g_k, of the products that differentiate weights
    and inner; carried: dlogits at the shifted id, and the derivative in scale."""

    kind: str | None
    shifted: bool
    scaled: bool
    weighted: bool
    inner: bool

    def start(self) -> tuple[float, ...]:
        return (0.0,) * (self.shifted + self.scaled)

    def columns(self) -> int:
        if self.outputs() > 1:
            return 64
        return COLUMNS if self.kind is None and not self.shifted else 128

    def outputs(self) -> int:
        return 1 + self.weighted + self.inner

    def step(self, carry, product, columns, rows, cols, write):
        probs = _probs(product, columns, rows, cols)
        slope, sums = along_rows(rows.factor, probs), list(carry)
        if self.kind is not None:
            summand, g = summand_of(self.kind, probs, rows, cols), along_rows(rows.reduced, probs)
            if self.weighted:
                write(1, g * summand.by_weights())
            if self.inner:
                write(1 + self.weighted, g * summand.by_inner())
            if self.scaled:
                sums[-1] += (g * summand.by_scale()).sum(1)
            slope = slope + g * summand.by_probs()
        dlogits = probs * slope
        for ids, g in zip(rows.ids, rows.gathered, strict=True):
            dlogits = jnp.where(columns == along_rows(ids, columns), dlogits + along_rows(g, dlogits), dlogits)
        if self.shifted:
            sums[0] += jnp.where(columns == along_rows(rows.shift_ids, columns), dlogits, 0.0).sum(1)
        write(0, dlogits)
        return tuple(sums)


def _probs(product: Array, columns: Array, rows: RowVectors, cols: ColumnVectors) -> Array:
    assert rows.log_sum_exp is not None
    return jnp.exp(logits_of(product, columns, rows, cols) - along_rows(rows.log_sum_exp, product))


def summand_of(kind: str, probs: Array, rows: RowVectors, cols: ColumnVectors) -> Summand:
    return SUMMANDS[kind](
        probs,
        None if cols.weights is None else along_columns(cols.weights, probs),
        None if rows.scale is None else along_rows(rows.scale, probs),
        None if cols.inner is None else along_columns(cols.inner, probs),
    )
