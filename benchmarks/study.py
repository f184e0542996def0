"""Sources, losses and samplers on small runs: what each is worth on one network, one corpus and the same batches.

    PYTHONPATH=. python benchmarks/study.py [--seeds 0,1,2] [--steps 1500] [--samples 32] [--workdir DIR]

Every run is `--mode=train` with `configs/quickstart.py` (leave-one-out logits), smaller, with one source and one
loss. The mask source has two runs a seed, not three: with leave-one-out logits its generalized KL, its time-reversal
bound and MD4's masked ELBO are one function. A run is then judged by

* its bounds on -log p of held-out blocks, integrated up to kappa = 1;
* its samples with every sampler and number of steps: nats per byte by an n-gram model of the training text, and the
  entropy of the bytes within a sample, which falls where samples are poor in another way;
* its bounds on -log p of its own samples, which are as likely to it as text only where the sampler draws from it.

One line of JSON a run, also in DIR/study.jsonl; a run that has its line there is neither trained nor judged again.
Then the tables of means and standard errors over seeds, and the picture (--picture PNG).
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

import dfm_jax
from benchmarks.judge_scale import scale
from benchmarks.runs_compared import BARE, Judge, Text, generator, read_text, score, train
from benchmarks.study_report import picture, tables
from dfm_jax.evaluation.likelihood import LikelihoodEstimator
from dfm_jax.run.load import Run
from dfm_jax.runtime.rng import noise_key

RUNS = {
    "mask": ("cross_entropy", "generalized_kl"),
    "uniform": ("cross_entropy", "generalized_kl", "time_reversal"),
}
SETTINGS: dict[str, object] = {
    **BARE,
    "model.hidden_size": 64,
    "model.n_heads": 2,
    "logging.log_freq": 100,
}
# Where a batch's times lie: the law in which a row's share of the loss varies least. Of the mask source that share is
# sigma for the cross entropy at uniform times, sqrt(sigma) for the generalized KL at 'squared' ones: equal in law.
TIME_LAWS = {"cross_entropy": "uniform", "generalized_kl": "squared", "time_reversal": "squared"}
BOUNDS = {"mask": ("generalized_kl",), "uniform": ("generalized_kl", "time_reversal")}
METHODS = {
    "mask": ("exact", "euler", "two_stage:div_free=1"),
    "uniform": ("exact", "euler", "two_stage:div_free=1", "ancestral"),
}
# The bound that speaks of a sampler's own process.
PROCESS = {"exact": "generalized_kl", "ancestral": "time_reversal"}
SAMPLING_STEPS = (16, 64, 256)
BLOCKS, TIME_POINTS = 128, 32


@dataclasses.dataclass(frozen=True)
class Examiner:
    """Judges runs; what is compiled for the first run of a source serves the others, whose network is the same."""

    text: Text
    samples: int

    @functools.cached_property
    def judge(self) -> Judge:
        return self.text.judge

    @functools.cached_property
    def _programs(self) -> dict[tuple, Any]:
        return {}

    def bounds(self, run: Run, source: str, blocks: np.ndarray) -> dict[str, float]:
        """Nats per byte of blocks (n, L) int32 by each bound of the source, up to kappa = 1."""
        if (source,) not in self._programs:
            self._programs[source,] = LikelihoodEstimator(run.problem, TIME_POINTS, bounds=BOUNDS[source])
        batch = blocks, np.ones(len(blocks), np.float32)
        results = self._programs[source,](run.model, [batch], key=noise_key(0, "likelihood"))
        return {name: result.exact[0] for name, result in results.items()}

    def sample(self, run: Run, source: str, method: str, steps: int, seed: int) -> np.ndarray:
        """(samples, L) int32; another seed has other noise."""
        at = source, method, steps
        if at not in self._programs:
            self._programs[at] = generator(run, self.samples, method=method, steps=steps)
        return next(self._programs[at](run.model, self.samples, start=seed * self.samples)).tokens

    def __call__(self, folder: pathlib.Path, source: str, seed: int) -> dict:
        """What the line of a run says of it: its bounds, and its samples by method and number of steps."""
        run = dfm_jax.load(folder)
        samples: dict[str, dict[str, dict[str, float]]] = {}
        of_samples = {}
        for method in METHODS[source]:
            drawn = {steps: self.sample(run, source, method, steps, seed) for steps in SAMPLING_STEPS}
            samples[method] = {str(steps): score(self.judge, tokens) for steps, tokens in drawn.items()}
            if method in PROCESS:
                of_samples[method] = self.bounds(run, source, drawn[max(SAMPLING_STEPS)])[PROCESS[method]]
        held_out = self.bounds(run, source, self.text.held_out[:BLOCKS])
        return {"bounds": held_out, "bounds_of_samples": of_samples, "samples": samples}


def finished(file: pathlib.Path, **asked: object) -> dict | None:
    """The last line of `file` that has all of `asked`."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return next((line for line in reversed(lines) if asked.items() <= line.items()), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=1500, help="updates of a run")
    parser.add_argument("--samples", type=int, default=32, help="of every run, sampler and number of steps")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/study"))
    parser.add_argument("--picture", type=pathlib.Path, default=pathlib.Path("runs/study/study.png"))
    given = parser.parse_args()
    given.workdir.mkdir(parents=True, exist_ok=True)

    examiner = Examiner(read_text(max(BLOCKS, given.samples)), given.samples)
    kept, rows = given.workdir / "study.jsonl", []
    for seed in (int(seed) for seed in given.seeds.split(",")):
        for source, loss in ((source, loss) for source, losses in RUNS.items() for loss in losses):
            asked = {"source": source, "loss": loss, "seed": seed, "steps": given.steps, "num": given.samples}
            asked["time_law"] = TIME_LAWS[loss]
            if (row := finished(kept, **asked)) is None:
                folder = given.workdir / f"{source}-{loss}-{seed}"
                own = {"flow.source_distribution": source, "flow.loss_function": loss, "flow.time_law": TIME_LAWS[loss]}
                started = time.monotonic()
                train(folder, {**SETTINGS, **own, "training.seed": seed, "optim.n_iters": given.steps})
                trained = time.monotonic()
                row = {**asked, **examiner(folder, source, seed)}
                judged = time.monotonic()
                row["seconds"] = {"train": round(trained - started, 1), "judge": round(judged - trained, 1)}
                with kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            rows.append(row)
            print(json.dumps(row), flush=True)
    known = scale(examiner.text)
    print(tables(rows, known))
    picture(rows, known, given.picture)
    print(f"picture {given.picture}")


if __name__ == "__main__":
    sys.exit(main())
