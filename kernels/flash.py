"""Flash attention in Pallas: forward with the log-sum-exp, backward for dq and for dk and dv.

The backend on a GPU is Mosaic GPU (Hopper and later): Pallas-Triton is deprecated from jax 0.11 on, and Mosaic GPU
takes the same programs on 0.10 to 0.12. Its memory pipeline has no interpreter, so the tiles' arithmetic is written
once, below, against a handful of operations (`Tiles`), and driven twice: by the pipeline (`flash_gpu.py`) and, on
any other platform, by `pallas_call(interpret=True)` over the same grid and blocks.

Scores are s = q k^T / sqrt(head_dim). Exponentials are powers of two: p = 2^(c q k^T - m) with
c = log2(e) / sqrt(head_dim).
"""

import dataclasses
import functools
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

HEAD_DIMS = (32, 128)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Positions per tile, multiples of 64, and tiles in flight between memory and a multiprocessor."""

    q: int = 64
    kv: int = 64
    stages: int = 2

    def __post_init__(self):
        for name in ("q", "kv"):
            if getattr(self, name) <= 0 or getattr(self, name) % 64:
                raise ValueError(f"{name}={getattr(self, name)}: accepted a multiple of 64")
        if self.stages < 1:
            raise ValueError(f"stages={self.stages}: accepted at least 1")


class Tiles(Protocol):
    """What the arithmetic of a tile is made of. Tiles are (rows, columns); a `ref` is a tile in fast memory."""

    def zeros(self, shape: tuple[int, ...]) -> Array: ...
    def row_vector(self, size: int, value: float) -> Array: ...  # one number per row
    def product(self, a_ref: Any, b_ref: Any) -> Array: ...  # a b^T, float32
    def accumulate(self, total: Array, a: Array, b_ref: Any) -> Array: ...  # total + a b
    def per_row(self, ref: Any) -> Array: ...  # a vector loaded to be spread along columns
    def per_column(self, ref: Any) -> Array: ...
    def columns(self, shape: tuple[int, ...]) -> Array: ...  # int32 index of each column


def spread(vector: Array, shape: tuple[int, ...], axis: int) -> Array:
    return jax.lax.broadcast_in_dim(vector, shape, (axis,))


def forward_step(tiles: Tiles, carry, j, q_ref, k_ref, v_ref, *, scale: float, length: int, padded: bool):
    """One tile of keys: (out before division, running maximum in base 2, running sum)."""
    out, peak, mass = carry
    scores = tiles.product(q_ref, k_ref) * scale
    if padded:
        columns = tiles.columns(scores.shape) + j * scores.shape[1]
        scores = jnp.where(columns < length, scores, -jnp.inf)
    higher = jnp.maximum(peak, scores.max(1))
    probs = jnp.exp2(scores - spread(higher, scores.shape, 0))
    shrink = jnp.exp2(peak - higher)
    out = tiles.accumulate(out * spread(shrink, out.shape, 0), probs.astype(v_ref.dtype), v_ref)
    return out, higher, mass * shrink + probs.sum(1)


def dq_step(tiles: Tiles, dq, log_sum, delta, q_ref, do_ref, k_ref, v_ref, *, scale: float):
    """dq += ds k, ds = p (do v^T - delta); the scale is left to the end."""
    scores = tiles.product(q_ref, k_ref) * scale
    probs = jnp.exp2(scores - spread(log_sum, scores.shape, 0))
    ds = probs * (tiles.product(do_ref, v_ref) - spread(delta, scores.shape, 0))
    return tiles.accumulate(dq, ds.astype(k_ref.dtype), k_ref)


def dkv_step(tiles: Tiles, dk, dv, k_ref, v_ref, q_ref, do_ref, log_sum_ref, delta_ref, *, scale: float):
    """The same tile transposed: dv += p^T do, dk += ds^T q."""
    scores = tiles.product(k_ref, q_ref) * scale
    probs = jnp.exp2(scores - spread(tiles.per_column(log_sum_ref), scores.shape, 1))
    dv = tiles.accumulate(dv, probs.astype(do_ref.dtype), do_ref)
    ds = probs * (tiles.product(v_ref, do_ref) - spread(tiles.per_column(delta_ref), scores.shape, 1))
    return tiles.accumulate(dk, ds.astype(q_ref.dtype), q_ref), dv


# The operation -------------------------------------------------------------------------------------------------


def flash_attention(q: Array, k: Array, v: Array, *, blocks: Blocks | None = None, interpret: bool) -> Array:
    """softmax(q k^T / sqrt(head_dim)) v, (batch, length, heads, head_dim) float16, bfloat16 or (interpreted) float32.

    Any length: tails are padded with zeros and masked. Statistics and sums are float32.
    """
    blocks = Blocks() if blocks is None else blocks
    length, head_dim = q.shape[1], q.shape[3]
    # Tiles of 64 columns are what the matrix unit's shared-memory layout holds; zero columns change no product.
    width = (-length % math.lcm(blocks.q, blocks.kv), -head_dim % 64)
    q, k, v = (jnp.pad(x, ((0, 0), (0, width[0]), (0, 0), (0, width[1]))) for x in (q, k, v))
    call = Call(blocks, length, head_dim**-0.5, interpret)
    out: Array = _attention(call, q, k, v)  # pyright: ignore
    return out[:, :length, :, :head_dim]


@dataclasses.dataclass(frozen=True)
class Call:
    """The static half: valid length, 1/sqrt(head_dim) before padding."""

    blocks: Blocks
    length: int
    scale: float
    interpret: bool

    @property
    def scale_2(self) -> float:
        return self.scale * math.log2(math.e)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call: Call, q: Array, k: Array, v: Array) -> Array:
    return _driver(call).forward(call, q, k, v)[0]


def _forward(call: Call, q: Array, k: Array, v: Array):
    out, log_sum = _driver(call).forward(call, q, k, v)
    return out, (q, k, v, out, log_sum)


def _backward(call: Call, kept, dout: Array):
    q, k, v, out, log_sum = kept
    # One number per row, (batch, heads, length): what differentiating the division by the sum leaves.
    delta = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    return _driver(call).backward(call, q, k, v, dout, log_sum, delta)


_attention.defvjp(_forward, _backward)


def _driver(call: Call):
    if call.interpret:
        return Interpreted
    from . import flash_gpu  # only where there is something to compile for: it needs a GPU build's modules

    return flash_gpu


# Interpreted ---------------------------------------------------------------------------------------------------


class JnpTiles:
    """Tiles as plain arrays."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return jnp.zeros(shape, jnp.float32)

    def row_vector(self, size: int, value: float) -> Array:
        return jnp.full((size,), value, jnp.float32)

    def product(self, a_ref: Any, b_ref: Any) -> Array:
        return jax.lax.dot_general(
            a_ref[...], b_ref[...], (((1,), (1,)), ((), ())), precision="highest", preferred_element_type=jnp.float32
        )

    def accumulate(self, total: Array, a: Array, b_ref: Any) -> Array:
        return total + jax.lax.dot_general(
            a, b_ref[...], (((1,), (0,)), ((), ())), precision="highest", preferred_element_type=jnp.float32
        )

    def per_row(self, ref: Any) -> Array:
        return ref[...]

    def per_column(self, ref: Any) -> Array:
        return ref[...]

    def columns(self, shape: tuple[int, ...]) -> Array:
        return jax.lax.broadcasted_iota(jnp.int32, shape, 1)


class Interpreted:
    """The three kernels under pallas_call's interpreter: a grid of (batch, heads, tiles), a loop over the others."""

    @staticmethod
    def forward(call: Call, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        tiles, n, size = JnpTiles(), q.shape[1], call.blocks.kv

        def kernel(q_ref, k_ref, v_ref, out_ref, log_sum_ref):
            def step(j, carry):
                at = pl.ds(j * size, size)
                return forward_step(
                    tiles, carry, j, q_ref, k_ref[at], v_ref[at],
                    scale=call.scale_2, length=call.length, padded=n != call.length,
                )  # fmt: skip

            rows = q_ref.shape
            start = tiles.zeros(rows), tiles.row_vector(rows[0], -jnp.inf), tiles.row_vector(rows[0], 0.0)
            out, peak, mass = jax.lax.fori_loop(0, n // size, step, start)
            out_ref[...] = (out / mass[:, None]).astype(out_ref.dtype)
            log_sum_ref[...] = peak + jnp.log2(mass)

        return _interpret(kernel, call.blocks.q, (q,), (k, v), (), (), out=(q.dtype,), vectors=1)

    @staticmethod
    def backward(call: Call, q: Array, k: Array, v: Array, dout: Array, log_sum: Array, delta: Array):
        tiles, n, blocks = JnpTiles(), q.shape[1], call.blocks

        def dq_kernel(q_ref, do_ref, k_ref, v_ref, log_sum_ref, delta_ref, dq_ref):
            def step(j, dq):
                at = pl.ds(j * blocks.kv, blocks.kv)
                return dq_step(
                    tiles, dq, log_sum_ref[...], delta_ref[...], q_ref, do_ref, k_ref[at], v_ref[at], scale=call.scale_2
                )

            dq = jax.lax.fori_loop(0, n // blocks.kv, step, tiles.zeros(q_ref.shape))
            dq_ref[...] = (dq * call.scale).astype(dq_ref.dtype)

        def dkv_kernel(k_ref, v_ref, q_ref, do_ref, log_sum_ref, delta_ref, dk_ref, dv_ref):
            def step(j, carry):
                (dk, dv), at = carry, pl.ds(j * blocks.q, blocks.q)
                return dkv_step(
                    tiles,
                    dk,
                    dv,
                    k_ref,
                    v_ref,
                    q_ref[at],
                    do_ref[at],
                    log_sum_ref[at],
                    delta_ref[at],
                    scale=call.scale_2,
                )

            zeros = tiles.zeros(k_ref.shape)
            dk, dv = jax.lax.fori_loop(0, n // blocks.q, step, (zeros, zeros))
            dk_ref[...] = (dk * call.scale).astype(dk_ref.dtype)
            dv_ref[...] = dv.astype(dv_ref.dtype)

        rows = (log_sum, delta)
        (dq,) = _interpret(dq_kernel, blocks.q, (q, dout), (k, v), rows, (), out=(q.dtype,), vectors=0)
        dk, dv = _interpret(dkv_kernel, blocks.kv, (k, v), (q, dout), (), rows, out=(k.dtype, v.dtype), vectors=0)
        return dq, dk, dv


def _interpret(kernel, size, cut, whole, cut_vectors, whole_vectors, *, out, vectors):
    """Runs `kernel` on tiles of `size` positions of `cut`; `whole` and its vectors come as they are."""
    batch, n, heads, width = cut[0].shape

    def tile(positions: int, index):
        return pl.BlockSpec((None, positions, None, width), lambda b, h, i: (b, index(i), h, 0))

    def vector(positions: int, index):
        return pl.BlockSpec((None, None, positions), lambda b, h, i: (b, h, index(i)))

    def here(i):
        return i

    def start(i):
        return i * 0

    specs = [tile(size, here)] * len(cut) + [tile(n, start)] * len(whole)
    specs += [vector(size, here)] * len(cut_vectors) + [vector(n, start)] * len(whole_vectors)
    return pl.pallas_call(
        kernel,
        grid=(batch, heads, n // size),
        in_specs=specs,
        out_specs=[tile(size, here)] * len(out) + [vector(size, here)] * vectors,
        out_shape=[jax.ShapeDtypeStruct(cut[0].shape, dtype) for dtype in out]
        + [jax.ShapeDtypeStruct((batch, heads, n), jnp.float32)] * vectors,
        interpret=True,
    )(*cut, *whole, *cut_vectors, *whole_vectors)
