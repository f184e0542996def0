"""Attention's implementations against each other: forward and gradient, interleaved, in one run.

    PYTHONPATH=. python benchmarks/attention.py [--batch 8] [--length 1024] [--heads 12] [--head_dim 64]
                                   [--dtype bfloat16] [--only xla,cudnn,pallas] [--repeats 10] [--rotary]

With `--rotary`, queries and keys are rotated, and `pallas` stands there twice: rotating tiles as it loads them, and
(`pallas, rotated before`) given rotated ones. Prints the best times and the temporary memory that the compiler plans.
On a GPU a repeat queues calls behind each other and waits once, so that the time is the device's. On a CPU
`pallas` is interpreted, which says nothing about its speed: it is left out there unless asked for.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.turns import interleaved
from kernels import target
from kernels.attention import IMPLEMENTATIONS, attention, why_not
from kernels.attention.rotary import Tables, rotate


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("batch", 8), ("length", 1024), ("heads", 12), ("head_dim", 64), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--rotary", action="store_true")
    args = parser.parse_args()
    shape = (args.batch, args.length, args.heads, args.head_dim)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, dout = (jax.random.normal(key, shape).astype(args.dtype) for key in keys)
    platform = target.current().platform
    names = args.only.split(",") if args.only else [n for n in IMPLEMENTATIONS if n != "pallas" or platform != "cpu"]

    angles = jnp.arange(args.length)[:, None] * 10000.0 ** (-jnp.arange(args.head_dim // 2) * 2 / args.head_dim)
    tables = (jnp.cos(angles), jnp.sin(angles)) if args.rotary else None

    def program(name: str, *, before: bool):
        def call(q: Array, k: Array, v: Array, tables: Tables | None) -> Array:
            if before and tables is not None:
                q, k, tables = *(rotate(x, tables).astype(x.dtype) for x in (q, k)), None
            return attention(q, k, v, rotary=tables, implementation=name)

        def run(q, k, v, dout, tables):
            out, pullback = jax.vjp(lambda q, k, v: call(q, k, v, tables), q, k, v)
            return out, pullback(dout)

        return jax.jit(run).lower(q, k, v, dout, tables).compile()

    compiled = {}
    for name in names:
        reason = why_not(name, head_dim=args.head_dim, dtype=q.dtype)
        if reason is not None:
            print(f"{name}: not run, {reason}")
            continue
        compiled[name] = program(name, before=False)
        if name == "pallas" and args.rotary:
            compiled["pallas, rotated before"] = program(name, before=True)
    given = (q, k, v, dout, tables)
    times = interleaved({name: functools.partial(run, *given) for name, run in compiled.items()}, args.repeats)
    # Two products forward and five backward of 2 L^2 head_dim operations each, per head.
    operations = 14 * args.batch * args.heads * args.length**2 * args.head_dim
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {args}")
    for name, rows in times.items():
        wall, processor = (min(column) for column in zip(*rows, strict=True))
        memory = compiled[name].memory_analysis().temp_size_in_bytes / 2**20
        clock = f"  processor {processor:8.4f} s" if platform == "cpu" else ""
        print(f"{name:22s} wall {wall:9.5f} s{clock}  {operations / wall / 1e12:7.3f} TFLOP/s  {memory:6.0f} MiB")


if __name__ == "__main__":
    main()
