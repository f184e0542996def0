"""Our sampler against the reference's own solver (`flow_matching`: dense posterior, float64 draws), in one process.

    PYTHONPATH=. python benchmarks/sampler_vs_pytorch.py [--hidden 256] [--blocks 4] [--heads 4] [--batch 4]
        [--length 256] [--vocabulary 50257] [--steps 8] [--sources uniform,mask] [--repeats 3] [--threads 0]
        [--device cpu] [--compile] [--json FILE]

Both take as many steps and as many repeats, and take turns: one sample set of ours, one of the reference, one of the
trunk alone (the floor), again. Processor cores and threads are set to --threads (0: all that this process may use)
before either library is imported. A row for each source, number of steps and program: median seconds, and ratios of
medians. With `--device cuda` all run on the first GPU, in bfloat16, PyTorch's model also compiled with `--compile`. A
program that fails is named. Needs `pip install .[torch]`. `--json FILE` writes the repeats, in seconds a step, of one
source and number of steps.
"""

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name, value in (("hidden", 256), ("blocks", 4), ("heads", 4), ("batch", 4), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--steps", type=int, nargs="+", default=[8])
    parser.add_argument("--sources", default="uniform,mask", help="names, separated by commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    if args.json and (len(args.steps) > 1 or "," in args.sources):
        parser.error("--json: expected one source and one number of steps")
    return args


def set_threads(count: int) -> int:
    """The same cores for both libraries, as many threads for each; how many. Before either is imported."""
    cores = sorted(os.sched_getaffinity(0))
    cores = cores[: count or len(cores)]
    os.sched_setaffinity(0, cores)  # XLA's pool has as many threads as the process may use cores
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(len(cores))
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # PyTorch's idle threads must not spin through our turn
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # nor must JAX take the memory of a GPU that both use
    return len(cores)


def timed(program: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    program()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    args = parse()
    threads = set_threads(args.threads)
    os.environ["JAX_PLATFORMS"] = args.device
    from benchmarks import samplers

    print(f"{samplers.versions()}, {threads} threads each, load {os.getloadavg()[0]:.1f}, {args}")
    print("| source | steps | program | seconds | processor | its time / ours | by processor |\n|" + "---|" * 7)
    for source in args.sources.split(","):
        for steps in args.steps:
            programs = samplers.programs(args, source, steps)
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
            failed: dict[str, str] = {}
            for repeat in range(args.repeats + 1):
                for name, program in programs.items():
                    if name in failed:
                        continue
                    try:
                        found = timed(program)
                    except Exception as error:  # out of memory, or no compiler: any of many types
                        failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                        print(f"{name}: not measured, {failed[name]}", flush=True)
                        continue
                    if repeat:  # the first compiles
                        times[name].append(found)
            times = {name: rows for name, rows in times.items() if name not in failed}
            middle = {name: [statistics.median(c) for c in zip(*rows, strict=True)] for name, rows in times.items()}
            for name, (wall, processor) in middle.items():
                ratios = wall / middle["ours"][0], processor / middle["ours"][1]
                print(
                    f"| {source} | {steps} | {name} | {wall:.3g} | {processor:.3g} "
                    f"| {ratios[0]:.3g} | {ratios[1]:.3g} |",
                    flush=True,
                )
            if args.json:
                seconds = {name: [wall / steps for wall, _ in rows] for name, rows in times.items()}
                args.json.write_text(json.dumps({"calls": 1, "seconds": seconds, "failed": failed}))


if __name__ == "__main__":
    main()
