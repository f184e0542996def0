"""Run in its own process by test_attention.py: compiles flash attention, forward and backward, for an H100.

    MOSAIC_GPU_DUMP_PTXAS=1 JAX_PLATFORMS=cpu PYTHONPATH=. python tests/kernels/flash_for_hopper.py

prints, through the compiler, the registers and spills of every kernel: forward, dq, dk and dv of each case in turn.
"""

import pathlib

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kernels.attention import attention

CHIP = pathlib.Path(__file__).parents[2] / "dfm_jax/planning/chips/h100.txtpb"
# head_dim, length, whether queries and keys are rotated. 1000 is no multiple of a tile: its tail is masked.
CASES = [(*sizes, rotated) for rotated in (False, True) for sizes in ((32, 256), (64, 70), (128, 1000))]


def compiled(head_dim: int, length: int, rotated: bool) -> str:
    topology = topologies.get_topology_desc(platform="cuda", target_config=CHIP.read_text(), topology="1x1x2")
    mesh = topologies.make_mesh(topology, (2, 1), ("data", "tensor"))
    split = {"mesh": mesh, "batch_axes": ("data",), "head_axis": "tensor"}

    def run(q, k, v, dout, rotary):
        def call(q, k, v):
            return attention(q, k, v, rotary=rotary, implementation="pallas", **split)

        out, pullback = jax.vjp(call, q, k, v)
        return out, pullback(dout)

    x = jax.ShapeDtypeStruct(
        (2, length, 2, head_dim), jnp.bfloat16, sharding=NamedSharding(mesh, P("data", None, "tensor"))
    )
    table = jax.ShapeDtypeStruct((length, head_dim // 2), jnp.float32, sharding=NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        return jax.jit(run).lower(x, x, x, x, (table, table) if rotated else None).compile().as_text()


if __name__ == "__main__":
    for case in CASES:
        print(case, flush=True)
        text = compiled(*case)
        assert text.count('custom_call_target="mosaic_gpu') == 3, text
        assert "all-gather" not in text
