"""The driver of `tiles.py` on any platform: pallas_call's interpreter over a grid of (batch, heads, tiles)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from .rotary import Tables
from .tiles import CHUNK, Call, Parts, dkv_step, dq_step, forward_step, rotated, store_gradient


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

    def part(self, ref: Any, start: int) -> Array:
        return ref[:, start : start + CHUNK].astype(jnp.float32)

    def table(self, ref: Any, start: int) -> Array:
        return ref[:, start : start + CHUNK]

    def operand(self, ref: Any, parts: Parts) -> Array:
        return jnp.concatenate([x for _, x in sorted(parts, key=lambda part: part[0])], 1).astype(ref.dtype)

    def store(self, ref: Any, parts: Parts) -> None:
        for start, x in parts:
            ref[:, start : start + x.shape[1]] = x.astype(ref.dtype)


def forward(call: Call, q: Array, k: Array, v: Array, tables: Tables | None) -> tuple[Array, Array]:
    tiles, n, blocks = JnpTiles(), q.shape[1], call.blocks

    def kernel(tables, q_ref, k_ref, v_ref, out_ref, log_sum_ref):
        q_tile = rotated(tiles, q_ref, _rows(tables, pl.program_id(2), blocks.q))

        def step(j, carry):
            at = pl.ds(j * blocks.kv, blocks.kv)
            return forward_step(
                tiles, carry, j, q_tile, k_ref[at], v_ref[at], _rows(tables, j, blocks.kv),
                scale=call.scale_2, length=call.length, padded=n != call.length,
            )  # fmt: skip

        rows = q_ref.shape
        start = tiles.zeros(rows), tiles.row_vector(rows[0], -jnp.inf), tiles.row_vector(rows[0], 0.0)
        out, peak, mass = jax.lax.fori_loop(0, n // blocks.kv, step, start)
        out_ref[...] = (out / mass[:, None]).astype(out_ref.dtype)
        log_sum_ref[...] = peak + jnp.log2(mass)

    return _interpret(kernel, blocks.q, tables, (q,), (k, v), (), (), out=(q.dtype,), vectors=1)


def backward(
    call: Call, q: Array, k: Array, v: Array, tables: Tables | None, dout: Array, log_sum: Array, delta: Array
):
    tiles, n, blocks = JnpTiles(), q.shape[1], call.blocks

    def dq_kernel(tables, q_ref, do_ref, k_ref, v_ref, log_sum_ref, delta_ref, dq_ref):
        here = _rows(tables, pl.program_id(2), blocks.q)
        q_tile, log_sum, delta = rotated(tiles, q_ref, here), log_sum_ref[...], delta_ref[...]

        def step(j, dq):
            at = pl.ds(j * blocks.kv, blocks.kv)
            rows = _rows(tables, j, blocks.kv)
            return dq_step(tiles, dq, log_sum, delta, q_tile, do_ref, k_ref[at], v_ref[at], rows, scale=call.scale_2)

        dq = jax.lax.fori_loop(0, n // blocks.kv, step, tiles.zeros(q_ref.shape))
        store_gradient(tiles, dq_ref, dq * call.scale, here)

    def dkv_kernel(tables, k_ref, v_ref, q_ref, do_ref, log_sum_ref, delta_ref, dk_ref, dv_ref):
        here = _rows(tables, pl.program_id(2), blocks.kv)
        k_tile = rotated(tiles, k_ref, here)

        def step(j, carry):
            (dk, dv), at = carry, pl.ds(j * blocks.q, blocks.q)
            q, dout, log_sum, delta = (ref[at] for ref in (q_ref, do_ref, log_sum_ref, delta_ref))
            rows = _rows(tables, j, blocks.q)
            return dkv_step(tiles, dk, dv, k_tile, v_ref, q, dout, log_sum, delta, rows, scale=call.scale_2)

        zeros = tiles.zeros(k_ref.shape)
        dk, dv = jax.lax.fori_loop(0, n // blocks.q, step, (zeros, zeros))
        store_gradient(tiles, dk_ref, dk * call.scale, here)
        dv_ref[...] = dv.astype(dv_ref.dtype)

    rows = (log_sum, delta)
    (dq,) = _interpret(dq_kernel, blocks.q, tables, (q, dout), (k, v), rows, (), out=(q.dtype,), vectors=0)
    dk, dv = _interpret(dkv_kernel, blocks.kv, tables, (k, v), (q, dout), (), rows, out=(k.dtype, v.dtype), vectors=0)
    return dq, dk, dv


def _rows(tables: Any, tile: Any, size: int) -> Any:
    """The tables of the positions of a tile."""
    return None if tables is None else tuple(table[pl.ds(tile * size, size)] for table in tables)


def _interpret(kernel, size, tables, cut, whole, cut_vectors, whole_vectors, *, out, vectors):
    """Runs `kernel` on tiles of `size` positions of `cut`; `tables`, `whole` and its vectors come as they are."""
    batch, n, heads, width = cut[0].shape

    def tile(positions: int, index):
        return pl.BlockSpec((None, positions, None, width), lambda b, h, i: (b, index(i), h, 0))

    def vector(positions: int, index):
        return pl.BlockSpec((None, None, positions), lambda b, h, i: (b, h, index(i)))

    def here(i):
        return i

    def start(i):
        return i * 0

    tables = () if tables is None else tables
    specs = [pl.BlockSpec(table.shape, lambda b, h, i: (i * 0, i * 0)) for table in tables]
    specs += [tile(size, here)] * len(cut) + [tile(n, start)] * len(whole)
    specs += [vector(size, here)] * len(cut_vectors) + [vector(n, start)] * len(whole_vectors)
    return pl.pallas_call(
        lambda *refs: kernel(refs[: len(tables)] or None, *refs[len(tables) :]),
        grid=(batch, heads, n // size),
        in_specs=specs,
        out_specs=[tile(size, here)] * len(out) + [vector(size, here)] * vectors,
        out_shape=[jax.ShapeDtypeStruct(cut[0].shape, dtype) for dtype in out]
        + [jax.ShapeDtypeStruct((batch, heads, n), jnp.float32)] * vectors,
        interpret=True,
    )(*tables, *cut, *whole, *cut_vectors, *whole_vectors)
