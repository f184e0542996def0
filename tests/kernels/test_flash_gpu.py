"""The Hopper driver of flash attention, run by jax's simulator of Mosaic GPU where this jax has one.

The simulator has shared memory, asynchronous copies, barriers and matrix products of shared tiles, and reports races
between copies and threads, but not those of its matrix products. It has no products whose left operand is in registers:
those are done plainly here, and so are reads of the GPU's memory.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from dfm_jax.models.layers import rotary_tables
from kernels.attention import attention
from kernels.attention.flash import flash_attention
from kernels.attention.tiles import CHUNK

pytestmark = pytest.mark.slow

if not hasattr(plgpu, "InterpretGPUParams"):
    pytest.skip("needs the simulator of Mosaic GPU (jax 0.12 or later)", allow_module_level=True)


def accumulate(self, total, a, b_ref):
    product = jax.lax.dot_general(a, b_ref[...], (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    plgpu.commit_smem()  # the simulator wants it between the threads' reads and the next copy
    return total + product


def table(self, ref, start):
    return ref[:, pl.ds(start, CHUNK)]


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("shape", [(1, 130, 2, 32), (1, 70, 1, 48), (1, 70, 1, 64), (1, 64, 1, 128)])
def test_it_equals_the_definition_and_copies_race_with_nothing(monkeypatch, shape, rotated):
    from kernels.attention import flash_gpu

    monkeypatch.setattr(flash_gpu.WarpgroupTiles, "accumulate", accumulate)
    monkeypatch.setattr(flash_gpu.WarpgroupTiles, "table", table)
    *arrays, cotangent = (
        jax.random.normal(k, shape).astype(jnp.float16) for k in jax.random.split(jax.random.key(0), 4)
    )
    tables = rotary_tables(shape[1], shape[3]) if rotated else None

    def run(function, *arrays, cotangent):
        out, pullback = jax.vjp(function, *arrays)
        return out, *pullback(cotangent.astype(out.dtype))

    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        found = run(lambda *x: flash_attention(*x, tables, interpret=False), *arrays, cotangent=cotangent)
    wide = [x.astype(jnp.float32) for x in arrays]
    wanted = run(lambda *x: attention(*x, rotary=tables, implementation="xla"), *wide, cotangent=cotangent)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=2e-3, rtol=0)
