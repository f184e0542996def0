"""Run in its own process by test_attention.py: compiles flash attention, forward and backward, for an H100."""

import pathlib

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kernels.attention import attention

CHIP = pathlib.Path(__file__).parents[2] / "dfm_jax/planning/chips/h100.txtpb"


def compiled(head_dim: int, length: int) -> str:
    topology = topologies.get_topology_desc(platform="cuda", target_config=CHIP.read_text(), topology="1x1x2")
    mesh = topologies.make_mesh(topology, (2, 1), ("data", "tensor"))

    def run(q, k, v, dout):
        def call(q, k, v):
            return attention(q, k, v, implementation="pallas", mesh=mesh, batch_axes=("data",), head_axis="tensor")

        out, pullback = jax.vjp(call, q, k, v)
        return out, pullback(dout)

    x = jax.ShapeDtypeStruct(
        (2, length, 2, head_dim), jnp.bfloat16, sharding=NamedSharding(mesh, P("data", None, "tensor"))
    )
    with jax.set_mesh(mesh):
        return jax.jit(run).lower(x, x, x, x).compile().as_text()


if __name__ == "__main__":
    for head_dim, length in ((32, 256), (128, 1000)):
        text = compiled(head_dim, length)
        assert text.count('custom_call_target="mosaic_gpu') == 3, text
        assert "all-gather" not in text
