"""The paths at equal training on the embedded corpus: one network, one loss, the same batches, several seeds.

    PYTHONPATH=. python benchmarks/paths.py [--names mixture_mask,...] [--seeds 0,1,2] [--steps 1500] [--workdir DIR]

Every run is `--mode=train` with `configs/quickstart.py`, smaller, and the path's own fields; all train by
cross-entropy on posterior logits, the one loss that every path has. A run is then judged by

* its samples, which an interpolated 5-gram model of the training text scores (nats per byte; real text beside it),
  with the entropy of the bytes within a sample, which falls where samples are poor in another way;
* its bounds on -log p of validation blocks, each of its own path, up to kappa = 0.999.

One line of JSON per run, then a table of means and standard errors over seeds. A finished run is not trained again.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np

import dfm_jax
from benchmarks.runs_compared import BARE, Judge, mean_and_error, read_text, score, train

COMMON = {
    **BARE,
    "flow.loss_function": "cross_entropy",
    "flow.time_law": "uniform",
    "flow.time_epsilon": 1e-3,
    "model.parametrization": "posterior",
    "model.hidden_size": 96,
    "model.n_heads": 3,
    "logging.log_freq": 250,
}
METRIC: dict[str, object] = {"flow.path": "metric", "sampling.method": "kinetic_optimal"}
PATHS: dict[str, dict[str, object]] = {
    "mixture_uniform": {"flow.source_distribution": "uniform"},
    "mixture_mask": {"flow.source_distribution": "mask"},
    "unigram_ko": {"flow.path": "kinetic_optimal", "flow.source_distribution": "unigram"},
    "three_term": {"flow.path": "three_term", "flow.source_distribution": "mask"},
    "metric_power": METRIC,
    "metric_speed": {**METRIC, "flow.beta": "constant_speed"},
    # Between the embeddings that the uniform mixture of the same seed learned.
    "metric_trained": {**METRIC, "flow.beta": "constant_speed", "flow.embeddings": "{workdir}/mixture_uniform-{seed}"},
}
SAMPLING_STEPS = (16, 64)
SAMPLES, BLOCKS = 256, 64
TIME_POINTS, METRIC_TIME_POINTS = 64, 16  # the metric path's bound costs V^2 a token


def train_path(name: str, seed: int, steps: int, workdir: pathlib.Path) -> pathlib.Path:
    """Trains `name` in a folder of its own and returns the folder."""
    folder = workdir / f"{name}-{seed}"
    changes = {**COMMON, **PATHS[name], "optim.n_iters": steps, "training.seed": seed}
    train(folder, {k: str(v).format(workdir=workdir, seed=seed) for k, v in changes.items()})
    return folder


def examine(folder: pathlib.Path, real: np.ndarray, judge: Judge) -> dict:
    run = dfm_jax.load(folder)
    points = METRIC_TIME_POINTS if run.config.flow.path == "metric" else TIME_POINTS
    bounds = run.likelihood(real[:BLOCKS], time_points=points)
    samples = {n: score(judge, run.sample_tokens(SAMPLES, steps=n, batch_size=SAMPLES)) for n in SAMPLING_STEPS}
    return {"bounds": {k: v.nats_per_token for k, v in bounds.items()}, "samples": samples}


def table(rows: list[dict], real: dict[str, float]) -> str:
    steps = [f"{n} steps: nats/byte | entropy" for n in SAMPLING_STEPS]
    lines = [f"| path | runs | {' | '.join(steps)} | its bounds, nats/byte |", "|---" * (2 * len(steps) + 3) + "|"]
    for name in dict.fromkeys(row["name"] for row in rows):
        runs = [row for row in rows if row["name"] == name]
        cells = [
            mean_and_error([run["samples"][n][kind] for run in runs])
            for n in SAMPLING_STEPS
            for kind in ("nats", "entropy")
        ]
        bounds = [f"{b} {mean_and_error([run['bounds'][b] for run in runs])}" for b in runs[0]["bounds"]]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} | {'; '.join(bounds)} |")
    empty = " | ".join([f"{real['nats']:.3f} | {real['entropy']:.3f}"] * len(SAMPLING_STEPS))
    return "\n".join([*lines, f"| real text | | {empty} | |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default=",".join(PATHS), help=", ".join(PATHS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/paths"))
    given = parser.parse_args()
    names, seeds = given.names.split(","), [int(seed) for seed in given.seeds.split(",")]
    if unknown := set(names) - set(PATHS):
        parser.error(f"--names = {','.join(sorted(unknown))}: expected {', '.join(PATHS)}")

    text = read_text(SAMPLES)  # the bound takes the first BLOCKS of them
    real, judge = text.held_out, text.judge

    rows = []
    for seed in seeds:
        for name in names:
            started = time.monotonic()
            folder = train_path(name, seed, given.steps, given.workdir)
            trained = time.monotonic()
            row = {"name": name, "seed": seed, "steps": given.steps, **examine(folder, real, judge)}
            seconds = {"train": round(trained - started, 1), "judge": round(time.monotonic() - trained, 1)}
            rows.append(row)
            print(json.dumps({**row, "seconds": seconds}), flush=True)
    print(table(rows, score(judge, real)))


if __name__ == "__main__":
    sys.exit(main())
