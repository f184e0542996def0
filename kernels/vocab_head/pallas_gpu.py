"""The driver of `pallas.py` on NVIDIA GPUs of compute capability 9.0: Pallas' Mosaic GPU backend.

A program is a row of tiles. One warpgroup copies pieces of both factors into a ring of buffers in shared memory,
without waiting for what is done with them; the others multiply, each 64 rows, and work on their tile while the copies,
and the products of their neighbour, go on. Compiled for sm_90a without register spills, and run in jax's simulation of
a GPU's threads and barriers; not yet timed on a card.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .pallas_tiles import Pass

_WARPGROUP_ROWS = 64  # of the matrix unit's smallest instruction
_SWIZZLED = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
# Up to here the columns' numbers, the same for every tile, stay in registers; a wider tile's would fill them.
_NARROW = 128
_SHARED_BYTES = 215 * 1024  # of 227 KiB on Hopper: the rest is for vectors and barriers
_PRODUCER_REGISTERS = 40
_BY_ROW, _BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


def run(tiles: Any, way: Pass, given: Any) -> tuple[list[Array], list[Array]]:
    """The carried vectors (N,) and the tiles' arrays (N, V) of one pass; given: a `pallas.Operands`."""
    (n, width), columns, dtype = given.features.shape, given.kernel.shape[1], given.features.dtype
    groups, pieces, count = tiles.rows // _WARPGROUP_ROWS, width // tiles.width, columns // tiles.columns
    stages = _stages(tiles, way.outputs(), dtype)
    by_row, row_tree = jax.tree.flatten(given.rows)
    by_column, column_tree = jax.tree.flatten(given.cols)
    start, written = way.start(), way.outputs()

    def kernel(features, matrix, *rest):
        rest = list(rest)
        row_refs, column_refs = _take(rest, len(by_row)), _take(rest, len(by_column))
        carry_refs, tile_refs = _take(rest, len(start)), _take(rest, written)
        left, right, full, empty, col_tiles, col_full, col_empty, floats, integers, row_full, out_tile = rest
        group = jax.lax.axis_index("group")
        first = jax.lax.axis_index("tile") * tiles.rows

        @pl.when(group == groups)
        def produce():
            plgpu.set_max_registers(_PRODUCER_REGISTERS, action="decrease")

            def tile(j, _):
                slot = jax.lax.rem(j, 2)
                pl.when(j >= 2)(lambda: plgpu.barrier_wait(col_empty.at[slot]))
                at = pl.ds(j * tiles.columns, tiles.columns)
                for i, ref in enumerate(column_refs):
                    plgpu.copy_gmem_to_smem(ref.at[at], col_tiles.at[slot, i], col_full.at[slot])

                def piece(d, _):
                    index = j * pieces + d
                    slot = jax.lax.rem(index, stages)
                    pl.when(index >= stages)(lambda: plgpu.barrier_wait(empty.at[slot]))
                    part = pl.ds(d * tiles.width, tiles.width)
                    for g in range(groups):
                        rows = pl.ds(first + g * _WARPGROUP_ROWS, _WARPGROUP_ROWS)
                        plgpu.copy_gmem_to_smem(features.at[rows, part], left.at[slot, g], full.at[slot])
                    plgpu.copy_gmem_to_smem(matrix.at[part, at], right.at[slot], full.at[slot])

                jax.lax.fori_loop(0, pieces, piece, None)

            jax.lax.fori_loop(0, count, tile, None)
            # Until the last buffers are empty: a barrier must not end with a phase that nobody waited for.
            for slot in range(min(stages, count * pieces)):
                plgpu.barrier_wait(empty.at[slot])
            for slot in range(min(2, count)):
                plgpu.barrier_wait(col_empty.at[slot])

        @pl.when(group < groups)
        def consume():
            plgpu.set_max_registers(_consumer_registers(groups), action="increase")
            rows = pl.ds(first + group * _WARPGROUP_ROWS, _WARPGROUP_ROWS)
            free = {jnp.dtype(buffer.dtype): iter(range(len(by_row))) for buffer in (floats, integers)}
            places = []
            for ref in row_refs:
                buffer = floats if ref.dtype == jnp.float32 else integers
                places.append(buffer.at[group, next(free[jnp.dtype(ref.dtype)])])
                plgpu.copy_gmem_to_smem(ref.at[rows], places[-1], row_full.at[group])
            plgpu.barrier_wait(row_full.at[group])
            vectors = jax.tree.unflatten(row_tree, [_load(place, _BY_ROW) for place in places])

            def multiply(j, total):
                def piece(d, _):
                    index = j * pieces + d
                    slot = jax.lax.rem(index, stages)
                    plgpu.barrier_wait(full.at[slot])
                    plgpu.wgmma(total, left.at[slot, group], right.at[slot])
                    # The product before this one has ended: its buffers may be filled.
                    plgpu.wgmma_wait(1)
                    pl.when(d > 0)(lambda: plgpu.barrier_arrive(empty.at[jax.lax.rem(index - 1, stages)]))

                jax.lax.fori_loop(0, pieces, piece, None)
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(empty.at[jax.lax.rem((j + 1) * pieces - 1, stages)])
                return total[...]

            def tile(j, carry):
                shape = (_WARPGROUP_ROWS, tiles.columns)
                product = pl.run_scoped(lambda total: multiply(j, total), plgpu.WGMMAAccumulatorRef(shape, jnp.float32))
                slot = jax.lax.rem(j, 2)
                plgpu.barrier_wait(col_full.at[slot])
                cols = [_load(col_tiles.at[slot, i], _BY_COLUMN) for i in range(len(by_column))]
                plgpu.commit_smem()  # read, before another copy may come here
                plgpu.barrier_arrive(col_empty.at[slot])
                ids, here = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA), vectors
                if tiles.columns > _NARROW:
                    ids = ids + j * tiles.columns
                else:
                    here = vectors.from_column(j * tiles.columns)
                if written:
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

                def write(i: int, value: Array) -> None:
                    out_tile.at[group, i][...] = value.astype(dtype)

                carry = way.step(carry, product, ids, here, jax.tree.unflatten(column_tree, cols), write)
                if written:
                    plgpu.commit_smem()
                    at = pl.ds(j * tiles.columns, tiles.columns)
                    for i, ref in enumerate(tile_refs):
                        plgpu.copy_smem_to_gmem(out_tile.at[group, i], ref.at[rows, at])
                return carry

            begun = tuple(plgpu.layout_cast(jnp.full((_WARPGROUP_ROWS,), x, jnp.float32), _BY_ROW) for x in start)
            for i, value in enumerate(jax.lax.fori_loop(0, count, tile, begun)):
                floats.at[group, i][...] = value
            plgpu.commit_smem()
            for i, ref in enumerate(carry_refs):
                plgpu.copy_smem_to_gmem(floats.at[group, i], ref.at[rows])
            plgpu.wait_smem_to_gmem(0)

    vectors = max(len(by_row), len(start))
    axes = jax.typeof(given.features).manual_axis_type
    shapes = [jax.ShapeDtypeStruct((n,), jnp.float32, manual_axis_type=axes)] * len(start)
    shapes += [jax.ShapeDtypeStruct((n, columns), dtype, manual_axis_type=axes)] * written
    kernel.__name__ = f"vocab_{type(way).__name__.lower()}"  # what a compiled program and a profile call it
    ring = (stages, groups, _WARPGROUP_ROWS, tiles.width)
    outputs = (groups, max(written, 1), *((_WARPGROUP_ROWS, tiles.columns) if written else (8, 64)))
    call = plgpu.kernel(
        kernel,
        out_type=shapes,
        scratch_types=[
            plgpu.SMEM(ring, dtype, transforms=_SWIZZLED),
            plgpu.SMEM((stages, tiles.width, tiles.columns), dtype, transforms=_SWIZZLED),
            plgpu.Barrier(num_arrivals=groups + 1, num_barriers=stages),
            plgpu.Barrier(num_arrivals=groups, num_barriers=stages),
            plgpu.SMEM((2, len(by_column), tiles.columns), jnp.float32),
            plgpu.Barrier(num_arrivals=len(by_column), num_barriers=2),
            plgpu.Barrier(num_arrivals=groups, num_barriers=2),
            plgpu.SMEM((groups, vectors, _WARPGROUP_ROWS), jnp.float32),
            plgpu.SMEM((groups, vectors, _WARPGROUP_ROWS), jnp.int32),
            plgpu.Barrier(num_arrivals=len(by_row), num_barriers=groups),
            plgpu.SMEM(outputs, dtype, transforms=_SWIZZLED),
        ],
        grid=(n // tiles.rows,),
        grid_names=("tile",),
        num_threads=groups + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    out = call(given.features, given.kernel, *by_row, *by_column)
    return list(out[: len(start)]), list(out[len(start) :])


def _stages(tiles: Any, written: int, dtype: Any) -> int:
    """As many as are asked for and as shared memory holds beside the tiles that are written."""
    free = _SHARED_BYTES - written * tiles.rows * tiles.columns * jnp.dtype(dtype).itemsize
    return min(tiles.stages, free // ((tiles.rows + tiles.columns) * tiles.width * jnp.dtype(dtype).itemsize))


def _take(refs: list[Any], count: int) -> list[Any]:
    taken, refs[:count] = refs[:count], []
    return taken


def _consumer_registers(groups: int) -> int:
    """What the producer gave up, in steps of 8, of 512 that the threads of four warpgroups with 128 each would have."""
    per_thread = min(65536 // (128 * (groups + 1)), 255) // 8 * 8
    return min((per_thread * (groups + 1) - _PRODUCER_REGISTERS) // groups // 8 * 8, 232)


def _load(ref: Any, layout: Any) -> Any:
    """A vector in shared memory in registers, as they are laid out for what comes next."""
    # The primitives of `plgpu.load`, whose own arguments differ between jax 0.10 and 0.12.
    return plgpu.layout_cast(ref[...], layout)
