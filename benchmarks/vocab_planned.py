"""The vocabulary head's implementations as the compiler plans them for a GPU that is not here: memory, traffic, bounds.

    PYTHONPATH=. python benchmarks/vocab_planned.py [--target h100:1] [--batch 64] [--length 1024] [--width 768]
                                                    [--vocabulary 50257]

A generalized KL, forward and with its gradient, bfloat16 operands, on one device of the target. The time is a bound:
each kernel at the chip's arithmetic or memory, whichever is slower; caches and launches are not in it. Nothing is run.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.vocab import summed
from dfm_jax.planning import targets
from dfm_jax.planning.hlo import arithmetic
from dfm_jax.planning.hlo import text as hlo


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", default="h100:1")
    for name, default in (("batch", 64), ("length", 1024), ("width", 768), ("vocabulary", 50257)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    target = targets.parse(args.target)
    topology = topologies.get_topology_desc(platform="cuda", target_config=target.chip.description, topology="1x1x1")
    mesh = topologies.make_mesh(topology, (1,), ("data",))
    stored, lead = -(-args.vocabulary // 128) * 128, (args.batch, args.length)

    def shape(*sizes: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, P()))

    operands = (
        shape(*lead, args.width, dtype=jnp.bfloat16), shape(args.width, stored), shape(stored),
        shape(*lead, 2, dtype=jnp.int32), shape(*lead),
    )  # fmt: skip
    print(f"jax {jax.__version__}, {args}")
    for name in ("blocks", "pallas"):

        def loss(*operands, name=name):
            return summed(*operands, num_valid=args.vocabulary, implementation=name)

        for what, program in (("forward", loss), ("with gradient", jax.value_and_grad(loss, argnums=(0, 1, 2)))):
            with jax.set_mesh(mesh):
                compiled = jax.jit(program).lower(*operands).compile()
            text, memory = compiled.as_text(), compiled.memory_analysis()
            assert text is not None and memory is not None, "the compiler keeps both"
            work, temporary = arithmetic.read(hlo.parse(text), target.chip), memory.temp_size_in_bytes / 2**30
            bound = f"{work.kernel_seconds * 1e3:5.1f} ms" if work.kernel_seconds is not None else "not known"
            print(
                f"{name:7s} {what:13s} temporary {temporary:5.2f} GiB  moved {work.bytes_moved / 1e9:5.1f} GB"
                f"  {work.flops / 1e12:5.2f} TFLOP  at least {bound}"
            )


if __name__ == "__main__":
    main()
