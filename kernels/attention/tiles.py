"""The arithmetic of flash attention on one tile, shared by its two drivers.

On a GPU the backend is Mosaic GPU. Pallas-Triton is deprecated since jax 0.11, and Mosaic GPU takes the same programs
from 0.10 to 0.12. Its memory pipeline has no interpreter. So this file writes the arithmetic once, in terms of a few
operations (`Tiles`). Two drivers supply these: the pipeline (`flash_gpu.py`), and on any other platform
`pallas_call(interpret=True)` over the same grid and blocks (`flash_interpreted.py`).

Scores are s = q k^T / sqrt(head_dim). Exponentials are powers of two: p = 2^(c q k^T - m) with
c = log2(e) / sqrt(head_dim).

With rotary tables the queries and keys arrive unrotated. Each tile is rotated when it is loaded, and the gradients are
rotated back before they are written. So no rotated copy is stored.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from . import rotary

CHUNK = 32  # columns of each half of a tile that are rotated at a time; more do not fit in a thread's registers


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Positions per tile of queries and of keys, multiples of 64, and `stages`: tiles in flight from memory."""

    q: int = 64
    kv: int = 64
    stages: int = 2

    def __post_init__(self):
        for name in ("q", "kv"):
            if getattr(self, name) <= 0 or getattr(self, name) % 64:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a multiple of 64")
        if self.stages < 1:
            raise ValueError(f"stages = {self.stages}: expected at least 1")


@dataclasses.dataclass(frozen=True)
class Call:
    """The static arguments of a call. length: positions before padding. scale: 1 / sqrt(head_dim) before padding."""

    blocks: Blocks
    length: int
    scale: float
    interpret: bool

    @property
    def scale_2(self) -> float:
        return self.scale * math.log2(math.e)


class Tiles(Protocol):
    """The operations that the arithmetic uses. Tiles are (rows, columns); a `ref` is a tile in fast memory."""

    def zeros(self, shape: tuple[int, ...]) -> Array: ...
    def row_vector(self, size: int, value: float) -> Array: ...  # one number per row
    def product(self, a_ref: Any, b_ref: Any) -> Array: ...  # a b^T, float32
    def accumulate(self, total: Array, a: Array, b_ref: Any) -> Array: ...  # total + a b
    def per_row(self, ref: Any) -> Array: ...  # a vector, loaded in the layout that broadcasts along columns
    def per_column(self, ref: Any) -> Array: ...
    def columns(self, shape: tuple[int, ...]) -> Array: ...  # int32 index of each column
    def part(self, ref: Any, start: int) -> Array: ...  # CHUNK columns from `start`, in float32
    def table(self, ref: Any, start: int) -> Array: ...  # the same of rows of a rotary table
    def operand(self, ref: Any, parts: "Parts") -> Any: ...  # a tile of these columns, of the shape and dtype of `ref`
    def store(self, ref: Any, parts: "Parts") -> None: ...


Parts = Iterator[tuple[int, Array]]  # (first column, columns), computed one after the other


def spread(vector: Array, shape: tuple[int, ...], axis: int) -> Array:
    """`vector` as axis `axis` of an array of this shape, the same along the other axis."""
    return jax.lax.broadcast_in_dim(vector, shape, (axis,))


def rotated(tiles: Tiles, ref: Any, tables: Any) -> Any:
    """A tile of queries or keys, rotated by its rows of `tables` and rounded to its dtype; unchanged without tables."""
    return ref if tables is None else tiles.operand(ref, _turned(tiles, lambda start: tiles.part(ref, start), tables))


def store_gradient(tiles: Tiles, ref: Any, total: Array, tables: Any) -> None:
    """Writes the gradient in unrotated queries or keys, from `total`, the gradient in rotated ones."""
    if tables is None:
        tiles.store(ref, iter([(0, total)]))
        return

    def part(start: int) -> Array:
        return jax.lax.slice(total, (0, start), (total.shape[0], start + CHUNK))

    tiles.store(ref, _turned(tiles, part, tables, back=True))


def _turned(tiles: Tiles, part: Callable[[int], Array], tables: Any, *, back: bool = False) -> Parts:
    cos_ref, sin_ref = tables
    half = cos_ref.shape[1]
    for start in range(0, half, CHUNK):
        cos, sin = tiles.table(cos_ref, start), tiles.table(sin_ref, start)
        first, second = rotary.turn(part(start), part(half + start), cos, -sin if back else sin)
        yield start, first
        yield half + start, second


def forward_step(tiles: Tiles, carry, j, q_ref, k_ref, v_ref, tables, *, scale: float, length: int, padded: bool):
    """Adds one tile of keys and values to the carry: (sum before division, running maximum in base 2, running mass)."""
    out, peak, mass = carry
    scores = tiles.product(q_ref, rotated(tiles, k_ref, tables)) * scale
    if padded:
        columns = tiles.columns(scores.shape) + j * scores.shape[1]
        scores = jnp.where(columns < length, scores, -jnp.inf)
    higher = jnp.maximum(peak, scores.max(1))
    probs = jnp.exp2(scores - spread(higher, scores.shape, 0))
    shrink = jnp.exp2(peak - higher)
    out = tiles.accumulate(out * spread(shrink, out.shape, 0), probs.astype(v_ref.dtype), v_ref)
    return out, higher, mass * shrink + probs.sum(1)


def dq_step(tiles: Tiles, dq, log_sum, delta, q_ref, do_ref, k_ref, v_ref, tables, *, scale: float):
    """dq + ds k with ds = p (do v^T - delta). The caller multiplies by the scale at the end."""
    k_ref = rotated(tiles, k_ref, tables)
    scores = tiles.product(q_ref, k_ref) * scale
    probs = jnp.exp2(scores - spread(log_sum, scores.shape, 0))
    ds = probs * (tiles.product(do_ref, v_ref) - spread(delta, scores.shape, 0))
    return tiles.accumulate(dq, ds.astype(k_ref.dtype), k_ref)


def dkv_step(tiles: Tiles, dk, dv, k_ref, v_ref, q_ref, do_ref, log_sum_ref, delta_ref, tables, *, scale: float):
    """(dk + ds^T q, dv + p^T do), from the transposed tile of probabilities."""
    q_ref = rotated(tiles, q_ref, tables)
    scores = tiles.product(k_ref, q_ref) * scale
    probs = jnp.exp2(scores - spread(tiles.per_column(log_sum_ref), scores.shape, 1))
    dv = tiles.accumulate(dv, probs.astype(do_ref.dtype), do_ref)
    ds = probs * (tiles.product(v_ref, do_ref) - spread(tiles.per_column(delta_ref), scores.shape, 1))
    return tiles.accumulate(dk, ds.astype(q_ref.dtype), q_ref), dv
