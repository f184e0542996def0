"""The vocabulary head's implementations against each other: forward and gradient of a generalized KL, in one run.

    PYTHONPATH=. python benchmarks/vocab.py [--rows 2048] [--width 256] [--vocabulary 50257] [--dtype float32]
                               [--repeats 5] [--only dense,blocks,pallas] [--columns 0] [--stages 4]

On a CPU a loop stands for the kernels of `pallas`, which says nothing of their speed: it is left out there unless it is
asked for. --columns and --stages are those of its tiles.
Prints the best time of each, interleaved, its ratio to `dense`, the temporary memory that the compiler plans, and the
time of the three matrix products alone. On a CPU the ratio is of processor times, the steadier on a shared machine. On
a GPU a repeat queues calls behind each other and waits once, so that the wall time, and the ratio, are the device's.
"""

import argparse
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.turns import interleaved
from kernels import vocab_head


def gkl(answer, data, shared):
    """A loss shaped like the generalized KL: the log-probability of x_1 and the probability of x_t."""
    del shared
    return data * (1.0 - jnp.exp(answer.at_ids[..., 1]) - 1.0 - answer.at_ids[..., 0])


def separate(features, kernel, bias, ids, weight, **options):
    answer = vocab_head.log_probs(vocab_head.Head(kernel, bias, **options), vocab_head.Query(ids), features)
    return gkl(answer, weight, ()).sum()


def summed(features, kernel, bias, ids, weight, **options):
    head, query = vocab_head.Head(kernel, bias, **options), vocab_head.Query(ids)
    total, _ = vocab_head.summed_loss(head, query, features, gkl, weight)
    return total


def products(features, kernel, bias, ids, weight):
    """Logits, and the two products of their gradient, and nothing else."""
    del bias, ids, weight
    rows, kernel = features.reshape(-1, features.shape[-1]), kernel.astype(features.dtype)
    logits = rows @ kernel
    return logits @ kernel.T, jax.lax.optimization_barrier(rows.T) @ logits


def main() -> None:
    parser = argparse.ArgumentParser()
    sizes = {"rows": 2048, "width": 256, "vocabulary": 50257, "repeats": 5, "batch": 8, "columns": 0, "stages": 4}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", default="", help="names, separated by commas")
    args = parser.parse_args()
    stored = -(-args.vocabulary // 128) * 128
    keys = jax.random.split(jax.random.key(0), 4)
    lead = (args.batch, args.rows // args.batch)
    operands = (
        jax.random.normal(keys[0], (*lead, args.width)).astype(args.dtype),
        jax.random.normal(keys[1], (args.width, stored)) * args.width**-0.5,
        jnp.zeros((stored,)),
        jax.random.randint(keys[2], (*lead, 2), 0, args.vocabulary),
        jax.random.uniform(keys[3], lead),
    )
    programs: dict[str, Callable[..., object]] = {"products alone": products}
    for name, function, implementation in (
        ("dense", separate, "dense"),
        ("blocks", separate, "blocks"),
        ("blocks, summed", summed, "blocks"),
        ("pallas", separate, "pallas"),
    ):
        tiles = vocab_head.Tiles(columns=args.columns, stages=args.stages)
        loss = functools.partial(function, implementation=implementation, num_valid=args.vocabulary, tiles=tiles)
        programs[name] = jax.value_and_grad(loss, argnums=(0, 1, 2))
        programs[f"{name}, forward"] = loss
    if args.only:
        programs = {name: programs[name] for name in args.only.split(",")}
    elif jax.default_backend() == "cpu":
        programs = {name: program for name, program in programs.items() if not name.startswith("pallas")}
    compiled = {name: jax.jit(program).lower(*operands).compile() for name, program in programs.items()}
    times = interleaved({name: functools.partial(run, *operands) for name, run in compiled.items()}, args.repeats)
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.device_kind}, {args}")
    best = {name: [min(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    on_host = jax.default_backend() == "cpu"
    for name, (wall, processor) in best.items():
        memory = compiled[name].memory_analysis()
        temporary = f"{memory.temp_size_in_bytes / 2**20:5.0f} MiB" if memory is not None else "memory not told"
        own, dense = ((pair[1] if on_host else pair[0]) for pair in (best[name], best.get("dense", best[name])))
        clock = f"  processor {processor:6.3f} s" if on_host else ""
        print(f"{name:24s} wall {wall:8.5f} s{clock}  {own / dense:5.2f} of dense  {temporary}")


if __name__ == "__main__":
    main()
