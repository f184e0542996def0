"""The driver of `flash.py` on NVIDIA GPUs of the Hopper generation and later: Pallas' Mosaic GPU backend.

One warpgroup per tile of 64 rows. The tile that stays is copied into shared memory once; the others stream through a
pipeline of asynchronous copies. Compiled for sm_90a without register spills; not yet timed on a card.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .flash import Call, dkv_step, dq_step, forward_step

_TRANSFORMS = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
_GRID = ("heads", "tile", "batch")


class WarpgroupTiles:
    """Tiles in the registers of a warpgroup, products on its matrix unit."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return plgpu.layout_cast(jnp.full(shape, 0.0, jnp.float32), plgpu.Layout.WGMMA)

    def row_vector(self, size: int, value: float) -> Array:
        return plgpu.layout_cast(jnp.full((size,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))

    def product(self, a_ref: Any, b_ref: Any) -> Any:
        def compute(total):
            plgpu.wgmma(total, a_ref, plgpu.transpose_ref(b_ref, (1, 0)))
            return total[...]

        return pl.run_scoped(compute, plgpu.WGMMAAccumulatorRef((a_ref.shape[0], b_ref.shape[0]), jnp.float32))

    def accumulate(self, total: Array, a: Array, b_ref: Any) -> Any:
        return pl.run_state(lambda ref: plgpu.wgmma(ref, a, b_ref))(plgpu.WGMMAAccumulatorRef.init(total))

    def per_row(self, ref: Any) -> Array:
        return _load(ref, plgpu.Layout.WGMMA.reduce(1))

    def per_column(self, ref: Any) -> Array:
        return _load(ref, plgpu.Layout.WGMMA.reduce(0))

    def columns(self, shape: tuple[int, ...]) -> Array:
        return plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA)


def _load(ref: Any, layout: Any) -> Array:
    # The index was an argument of its own until jax 0.12.
    index = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()
    return plgpu.load(ref, *index, layout=layout)


def _here(size: int) -> tuple[Any, Any, Any]:
    """(batch, the tile's positions, head) of this program."""
    return jax.lax.axis_index("batch"), pl.ds(jax.lax.axis_index("tile") * size, size), jax.lax.axis_index("heads")


def _read(pairs: list[tuple[Any, Any]], barriers: Any) -> None:
    for i, (source, target) in enumerate(pairs):
        plgpu.copy_gmem_to_smem(source, target, barriers.at[i])
    for i in range(len(pairs)):
        plgpu.barrier_wait(barriers.at[i])


def _write(pairs: list[tuple[Any, Any]]) -> None:
    plgpu.commit_smem()
    for source, target in pairs:
        plgpu.copy_smem_to_gmem(source, target)
    plgpu.wait_smem_to_gmem(0)


def _stream(step: Any, start: Any, refs: list[Any], size: int, n: int, stages: int) -> Any:
    """`step(j, tiles, carry)` over the tiles of `refs`, (n, width) or (n,) each."""
    specs = [
        plgpu.BlockSpec((size, ref.shape[1]), lambda j: (j, 0), transforms=_TRANSFORMS)
        if len(ref.shape) == 2
        else plgpu.BlockSpec((size,), lambda j: (j,))
        for ref in refs
    ]
    pipeline = plgpu.emit_pipeline(
        lambda indices, *args: step(indices[0], args[:-1], args[-1]),
        grid=(n // size,),
        in_specs=specs,
        max_concurrent_steps=stages,
        init_carry=start,
    )
    return pipeline(*refs)


def _call(kernel: Any, like: Array, *, size: int, outputs: Any, scratch: list[Any]) -> Any:
    """A program for every tile of `size` positions, with a barrier for each buffer of `scratch`."""
    batch, n, heads, _ = like.shape
    return plgpu.kernel(
        kernel,
        out_type=outputs,
        scratch_types=[*scratch, plgpu.Barrier(num_barriers=len(scratch))],
        grid=(heads, n // size, batch),
        grid_names=_GRID,
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def _tile(size: int, x: Array) -> Any:
    return plgpu.SMEM((size, x.shape[3]), x.dtype, transforms=_TRANSFORMS)


def forward(call: Call, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    tiles, n, size = WarpgroupTiles(), q.shape[1], call.blocks.q

    def kernel(q_ref, k_ref, v_ref, out_ref, log_sum_ref, q_tile, row_tile, barriers):
        batch, at, head = _here(size)
        _read([(q_ref.at[batch, at, head], q_tile)], barriers)

        def step(j, streamed, carry):
            return forward_step(
                tiles, carry, j, q_tile, *streamed,
                scale=call.scale_2, length=call.length, padded=n != call.length,
            )  # fmt: skip

        start = tiles.zeros(q_tile.shape), tiles.row_vector(size, -jnp.inf), tiles.row_vector(size, 0.0)
        sources = [k_ref.at[batch, :, head], v_ref.at[batch, :, head]]
        out, peak, mass = _stream(step, start, sources, call.blocks.kv, n, call.blocks.stages)
        q_tile[...] = (out / jax.lax.broadcast_in_dim(mass, out.shape, (0,))).astype(q_tile.dtype)
        row_tile[...] = peak + jnp.log2(mass)
        _write([(q_tile, out_ref.at[batch, at, head]), (row_tile, log_sum_ref.at[batch, head, at])])

    shape = jax.ShapeDtypeStruct((q.shape[0], q.shape[2], n), jnp.float32)
    scratch = [_tile(size, q), plgpu.SMEM((size,), jnp.float32)]
    return _call(kernel, q, size=size, outputs=[q, shape], scratch=scratch)(q, k, v)


def backward(call: Call, q: Array, k: Array, v: Array, dout: Array, log_sum: Array, delta: Array):
    tiles, n, blocks = WarpgroupTiles(), q.shape[1], call.blocks

    def dq_kernel(
        q_ref, do_ref, k_ref, v_ref, sum_ref, delta_ref, dq_ref, q_tile, do_tile, sum_row, delta_row, barriers
    ):
        batch, at, head = _here(blocks.q)
        _read(
            [
                (q_ref.at[batch, at, head], q_tile),
                (do_ref.at[batch, at, head], do_tile),
                (sum_ref.at[batch, head, at], sum_row),
                (delta_ref.at[batch, head, at], delta_row),
            ],
            barriers,
        )
        log_sum, delta = tiles.per_row(sum_row), tiles.per_row(delta_row)

        def step(j, streamed, dq):
            return dq_step(tiles, dq, log_sum, delta, q_tile, do_tile, *streamed, scale=call.scale_2)

        sources = [k_ref.at[batch, :, head], v_ref.at[batch, :, head]]
        dq = _stream(step, tiles.zeros(q_tile.shape), sources, blocks.kv, n, blocks.stages)
        q_tile[...] = (dq * call.scale).astype(q_tile.dtype)
        _write([(q_tile, dq_ref.at[batch, at, head])])

    def dkv_kernel(k_ref, v_ref, q_ref, do_ref, sum_ref, delta_ref, dk_ref, dv_ref, k_tile, v_tile, barriers):
        batch, at, head = _here(blocks.kv)
        _read([(k_ref.at[batch, at, head], k_tile), (v_ref.at[batch, at, head], v_tile)], barriers)

        def step(j, streamed, carry):
            (dk, dv), (q, dout, log_sum, delta) = carry, streamed
            return dkv_step(tiles, dk, dv, k_tile, v_tile, q, dout, log_sum, delta, scale=call.scale_2)

        sources = [q_ref.at[batch, :, head], do_ref.at[batch, :, head]]
        sources += [sum_ref.at[batch, head], delta_ref.at[batch, head]]
        start = tiles.zeros(k_tile.shape), tiles.zeros(v_tile.shape)
        dk, dv = _stream(step, start, sources, blocks.q, n, blocks.stages)
        k_tile[...] = (dk * call.scale).astype(k_tile.dtype)
        v_tile[...] = dv.astype(v_tile.dtype)
        _write([(k_tile, dk_ref.at[batch, at, head]), (v_tile, dv_ref.at[batch, at, head])])

    row = plgpu.SMEM((blocks.q,), jnp.float32)
    dq = _call(dq_kernel, q, size=blocks.q, outputs=q, scratch=[_tile(blocks.q, q), _tile(blocks.q, dout), row, row])(
        q, dout, k, v, log_sum, delta
    )
    dk, dv = _call(dkv_kernel, k, size=blocks.kv, outputs=[k, v], scratch=[_tile(blocks.kv, k), _tile(blocks.kv, v)])(
        k, v, q, dout, log_sum, delta
    )
    return dq, dk, dv
