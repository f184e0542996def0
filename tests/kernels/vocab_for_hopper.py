"""Run in its own process by test_vocab_gpu.py: compiles the vocabulary head's kernels for an H100."""

import pathlib
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kernels import vocab_head

CHIP = pathlib.Path(__file__).parents[2] / "dfm_jax/planning/chips/h100.txtpb"
WIDTH, STORED, VALID, ROWS = 768, 50304, 50258, 1000


def compiled(kind: str | None, shifted: bool) -> str:
    topology = topologies.get_topology_desc(platform="cuda", target_config=CHIP.read_text(), topology="1x1x1")
    mesh = topologies.make_mesh(topology, (1,), ("data",))

    def loss(features, kernel, bias, amounts, weights, scale, inner, ids):
        extra = {"scale": scale, "inner": inner} if kind in ("log1p", "cotangent") else {}
        head = vocab_head.Head(kernel, bias, num_valid=VALID, implementation="pallas")
        reduction = None if kind is None else vocab_head.Reduction(kind, weights, **extra)
        shift = (amounts, ids[:, 0]) if shifted else (None, None)
        answer = vocab_head.log_probs(head, vocab_head.Query(ids, *shift, VALID - 1, reduction), features)
        total = (jnp.cos(answer.at_ids).sum() + jnp.sin(answer.log_sum_exp).sum()).astype(jnp.float32)
        return total if answer.reduced is None else total + jnp.sin(answer.reduced).sum()

    def shape(*sizes: int, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, P()))

    arguments = (
        shape(ROWS, WIDTH, dtype=jnp.bfloat16), shape(WIDTH, STORED), shape(STORED), shape(ROWS),
        shape(STORED), shape(ROWS), shape(STORED), shape(ROWS, 2, dtype=jnp.int32),
    )  # fmt: skip
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, argnums=range(7))).lower(*arguments).compile().as_text()


if __name__ == "__main__":
    # What objectives ask for: none of them shifts a logit and reduces in one of the first two ways.
    forms = {
        "plain": (None, False), "shifted": (None, True), "linear": ("linear", False), "log1p": ("log1p", False),
        "cotangent": ("cotangent", True),
    }  # fmt: skip
    for kind, shifted in (forms[name] for name in sys.argv[1:] or forms):
        text = compiled(kind, shifted)
        found = text.count('custom_call_target="mosaic_gpu')
        assert found == (3 if kind == "log1p" else 2), (kind, found)
        assert f"f32[{ROWS},{STORED}]" not in text and f"f32[1024,{STORED}]" not in text
