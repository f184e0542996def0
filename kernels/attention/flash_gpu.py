"""The driver of `tiles.py` on NVIDIA GPUs of compute capability 9.0: Pallas' Mosaic GPU backend.

Each tile of 64 rows has one warpgroup. The tile that stays is copied into shared memory once; the others stream
through a pipeline of asynchronous copies. A tile is rotated in place in shared memory. All heads share the rotary
tables and read them from global memory, where a cache holds them. The kernels compile for sm_90a without register
spills. They have not been timed on a GPU yet.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu

from .rotary import Tables
from .tiles import CHUNK, Call, Parts, dkv_step, dq_step, forward_step, rotated, store_gradient

_GRID = ("heads", "tile", "batch")


class WarpgroupTiles:
    """Tiles in the registers of a warpgroup, products on its matrix unit."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return plgpu.layout_cast(jnp.full(shape, 0.0, jnp.float32), plgpu.Layout.WGMMA)

    def row_vector(self, size: int, value: float) -> Array:
        return plgpu.layout_cast(jnp.full((size,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))

    def product(self, a_ref: Any, b_ref: Any) -> Any:
        def compute(total):
            plgpu.wgmma(total, a_ref, b_ref.T)
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

    def part(self, ref: Any, start: int) -> Array:
        # In this layout a thread holds the same columns of every group of eight: both halves of a pair are its own.
        return _load(ref.at[:, pl.ds(start, CHUNK)], plgpu.Layout.WGMMA).astype(jnp.float32)

    def table(self, ref: Any, start: int) -> Array:
        # `plgpu.load` reads from the GPU's memory as well, but its arguments differ between jax 0.10 and 0.12.
        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(),),
            return_type=plgpu.ShapeDtypeStruct((ref.shape[0], CHUNK), jnp.float32, layout=plgpu.Layout.WGMMA),
        )
        def read(_, source):
            # Eight bytes at a time, the best that this layout does in memory that has no swizzle.
            return mgpu.FragmentedArray.load_untiled(source, layout=mgpu.WGMMA_LAYOUT, optimized=False)

        return read(ref.at[:, pl.ds(start, CHUNK)])  # pyright: ignore[reportCallIssue]

    def operand(self, ref: Any, parts: Parts) -> Any:
        self.store(ref, parts)
        plgpu.commit_smem()  # the matrix unit reads what the threads wrote
        return ref

    def store(self, ref: Any, parts: Parts) -> None:
        for start, x in parts:
            ref[:, pl.ds(start, x.shape[1])] = x.astype(ref.dtype)


def _load(ref: Any, layout: Any) -> Any:
    """A part of shared memory in registers, as they are laid out for what comes next."""
    # The primitives of `plgpu.load`, whose own arguments differ between jax 0.10 and 0.12.
    return plgpu.layout_cast(ref[...], layout)


def _transforms(columns: int) -> tuple[Any, Any]:
    """Shared memory in groups of 8 rows and `columns` two-byte columns, as the matrix unit reads it."""
    return plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(2 * columns)


def _columns(tables: Tables | None) -> int:
    """Columns of a group for queries and keys: a part that is rotated must be whole groups."""
    return 64 if tables is None else CHUNK


def _rows(tables: Any, tile: Any, size: int) -> Any:
    """The tables of the positions of a tile."""
    return None if tables is None else tuple(table.at[pl.ds(tile * size, size)] for table in tables)


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


def _stream(step: Any, start: Any, refs: list[tuple[Any, int]], size: int, n: int, stages: int) -> Any:
    """`step(j, tiles, carry)` over the tiles of `refs`: arrays (n, width) with a group's columns, or (n,) and 0."""
    specs = [
        plgpu.BlockSpec((size, ref.shape[1]), lambda j: (j, 0), transforms=_transforms(columns))
        if columns
        else plgpu.BlockSpec((size,), lambda j: (j,))
        for ref, columns in refs
    ]
    pipeline = plgpu.emit_pipeline(
        lambda indices, *args: step(indices[0], args[:-1], args[-1]),
        grid=(n // size,),
        in_specs=specs,
        max_concurrent_steps=stages,
        init_carry=start,
    )
    return pipeline(*(ref for ref, _ in refs))


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


def _tile(size: int, x: Array, columns: int = 64) -> Any:
    return plgpu.SMEM((size, x.shape[3]), x.dtype, transforms=_transforms(columns))


def forward(call: Call, q: Array, k: Array, v: Array, tables: Tables | None) -> tuple[Array, Array]:
    tiles, n, size, columns = WarpgroupTiles(), q.shape[1], call.blocks.q, _columns(tables)

    def flash_forward(tables, q_ref, k_ref, v_ref, out_ref, log_sum_ref, q_tile, row_tile, barriers):
        batch, at, head = _here(size)
        _read([(q_ref.at[batch, at, head], q_tile)], barriers)
        q = rotated(tiles, q_tile, _rows(tables, jax.lax.axis_index("tile"), size))

        def step(j, streamed, carry):
            k, v = streamed
            return forward_step(
                tiles, carry, j, q, k, v, _rows(tables, j, call.blocks.kv),
                scale=call.scale_2, length=call.length, padded=n != call.length,
            )  # fmt: skip

        start = tiles.zeros(q_tile.shape), tiles.row_vector(size, -jnp.inf), tiles.row_vector(size, 0.0)
        sources = [(k_ref.at[batch, :, head], columns), (v_ref.at[batch, :, head], 64)]
        out, peak, mass = _stream(step, start, sources, call.blocks.kv, n, call.blocks.stages)
        q_tile[...] = (out / jax.lax.broadcast_in_dim(mass, out.shape, (0,))).astype(q_tile.dtype)
        row_tile[...] = peak + jnp.log2(mass)
        _write([(q_tile, out_ref.at[batch, at, head]), (row_tile, log_sum_ref.at[batch, head, at])])

    shape = jax.ShapeDtypeStruct((q.shape[0], q.shape[2], n), jnp.float32)
    scratch = [_tile(size, q, columns), plgpu.SMEM((size,), jnp.float32)]
    return _call(flash_forward, q, size=size, outputs=[q, shape], scratch=scratch)(tables, q, k, v)


def backward(
    call: Call, q: Array, k: Array, v: Array, tables: Tables | None, dout: Array, log_sum: Array, delta: Array
):
    tiles, n, blocks, columns = WarpgroupTiles(), q.shape[1], call.blocks, _columns(tables)

    def flash_dq(
        tables, q_ref, do_ref, k_ref, v_ref, sum_ref, delta_ref, dq_ref, q_tile, do_tile, sum_row, delta_row, barriers
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
        here = _rows(tables, jax.lax.axis_index("tile"), blocks.q)
        q, log_sum, delta = rotated(tiles, q_tile, here), tiles.per_row(sum_row), tiles.per_row(delta_row)

        def step(j, streamed, dq):
            (k, v), rows = streamed, _rows(tables, j, blocks.kv)
            return dq_step(tiles, dq, log_sum, delta, q, do_tile, k, v, rows, scale=call.scale_2)

        sources = [(k_ref.at[batch, :, head], columns), (v_ref.at[batch, :, head], 64)]
        dq = _stream(step, tiles.zeros(q_tile.shape), sources, blocks.kv, n, blocks.stages)
        store_gradient(tiles, q_tile, dq * call.scale, here)
        _write([(q_tile, dq_ref.at[batch, at, head])])

    def flash_dkv(tables, k_ref, v_ref, q_ref, do_ref, sum_ref, delta_ref, dk_ref, dv_ref, k_tile, v_tile, barriers):
        batch, at, head = _here(blocks.kv)
        _read([(k_ref.at[batch, at, head], k_tile), (v_ref.at[batch, at, head], v_tile)], barriers)
        here = _rows(tables, jax.lax.axis_index("tile"), blocks.kv)
        k = rotated(tiles, k_tile, here)

        def step(j, streamed, carry):
            (dk, dv), (q, dout, log_sum, delta), rows = carry, streamed, _rows(tables, j, blocks.q)
            return dkv_step(tiles, dk, dv, k, v_tile, q, dout, log_sum, delta, rows, scale=call.scale_2)

        sources = [(q_ref.at[batch, :, head], columns), (do_ref.at[batch, :, head], 64)]
        sources += [(sum_ref.at[batch, head], 0), (delta_ref.at[batch, head], 0)]
        start = tiles.zeros(k_tile.shape), tiles.zeros(v_tile.shape)
        dk, dv = _stream(step, start, sources, blocks.q, n, blocks.stages)
        store_gradient(tiles, k_tile, dk * call.scale, here)
        v_tile[...] = dv.astype(v_tile.dtype)
        _write([(k_tile, dk_ref.at[batch, at, head]), (v_tile, dv_ref.at[batch, at, head])])

    row = plgpu.SMEM((blocks.q,), jnp.float32)
    scratch = [_tile(blocks.q, q, columns), _tile(blocks.q, dout), row, row]
    dq = _call(flash_dq, q, size=blocks.q, outputs=q, scratch=scratch)(tables, q, dout, k, v, log_sum, delta)
    scratch = [_tile(blocks.kv, k, columns), _tile(blocks.kv, v)]
    dk, dv = _call(flash_dkv, k, size=blocks.kv, outputs=[k, v], scratch=scratch)(tables, k, v, q, dout, log_sum, delta)
    return dq, dk, dv
