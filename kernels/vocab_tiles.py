"""The arithmetic of the vocabulary head on one tile of rows x columns of the logits, for its Pallas kernels.

A pass goes over all tiles of a row of tiles and carries a few numbers per row. Each is written once, here, on plain
arrays, and driven twice: by a loop (`vocab_pallas.py`) and on the matrix unit of a GPU (`vocab_gpu.py`). Only
operations that Mosaic GPU has are used: no log1p, no tan.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array


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
class Reduction:
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


# What is summed over the vocabulary ---------------------------------------------------------------------------------


@dataclasses.dataclass
class Summand:
    """weights f(p, y), y = scale inner, of a `vocab_types.Reduction`, and its derivatives; all (R, C), None for ones.

    Methods, not values: of a tile's many products only those that are wanted live, and only as long as they are.
    """

    probs: Array
    weights: Array | None
    scale: Array | None
    inner: Array | None

    def value(self) -> Array:
        return _times(self.by_weights(), self.weights)

    def by_probs(self) -> Array:
        raise NotImplementedError

    def by_weights(self) -> Array:
        raise NotImplementedError

    def by_product(self) -> Array:
        """In y."""
        raise NotImplementedError

    def by_scale(self) -> Array:
        return _times(self.by_product(), self.inner)

    def by_inner(self) -> Array:
        return _times(self.by_product(), self.scale)

    def product(self) -> Array:
        return _times(_times(jnp.ones_like(self.probs), self.scale), self.inner)


class Linear(Summand):
    """p"""

    def by_probs(self) -> Array:
        return _times(jnp.ones_like(self.probs), self.weights)

    def by_weights(self) -> Array:
        return self.probs


class Log1p(Summand):
    """log(1 + y p)"""

    def by_probs(self) -> Array:
        y = self.product()
        return _times(y / (1 + y * self.probs), self.weights)

    def by_weights(self) -> Array:
        return log_1p(self.product() * self.probs)

    def by_product(self) -> Array:
        return _times(self.probs / (1 + self.product() * self.probs), self.weights)


class Cotangent(Summand):
    """p (1 - y cot y)"""

    def by_probs(self) -> Array:
        return _times(cotangent_term(self.product()), self.weights)

    def by_weights(self) -> Array:
        return self.probs * cotangent_term(self.product())

    def by_product(self) -> Array:
        return _times(self.probs * cotangent_slope(self.product()), self.weights)


SUMMANDS = {"linear": Linear, "log1p": Log1p, "cotangent": Cotangent}


def summand_of(kind: str, probs: Array, rows: RowVectors, cols: ColumnVectors) -> Summand:
    return SUMMANDS[kind](
        probs,
        None if cols.weights is None else along_columns(cols.weights, probs),
        None if rows.scale is None else along_rows(rows.scale, probs),
        None if cols.inner is None else along_columns(cols.inner, probs),
    )


def _times(a: Array, b: Array | None) -> Array:
    return a if b is None else a * b


def log_1p(x: Array) -> Array:
    """log(1 + x) for x >= 0, by its series where the sum would round x away. Relative error 1e-7."""
    series = jnp.full_like(x, -1 / 8)
    for n in range(7, 0, -1):
        series = series * x + (1 / n if n % 2 else -1 / n)
    return jnp.where(x < 0.1, series * x, jnp.log(1 + x))


def cotangent_term(y: Array) -> Array:
    """1 - y cot y for y in [0, pi), by its series where the difference would cancel."""
    small, square = y < 0.1, y * y
    series = square * (1 / 3 + square * (1 / 45 + square * (2 / 945 + square / 4725)))
    safe = jnp.where(small, 1.0, y)
    return jnp.where(small, series, 1 - safe * jnp.cos(safe) / jnp.sin(safe))


def cotangent_slope(y: Array) -> Array:
    """Its derivative, y / sin^2 y - cot y."""
    small, square = y < 0.1, y * y
    series = y * (2 / 3 + square * (4 / 45 + square * (12 / 945 + square * 8 / 4725)))
    safe = jnp.where(small, 1.0, y)
    sin = jnp.sin(safe)
    return jnp.where(small, series, (safe / sin - jnp.cos(safe)) / sin)
