"""Samplers at equal cost: one trained run of bytes, every sampler with several numbers of evaluations, three seeds.

    PYTHONPATH=. python benchmarks/samplers_compared.py RUN [--texts 64] [--seeds 3] [--out FILE.jsonl]

A text is judged by a 5-gram model of the training text (nats a byte; a low figure is likely text) and by the entropy of
its own bytes, which falls where texts repeat themselves. A corrector's round costs an evaluation, so a sampler with a
corrector takes half as many steps. `unmask` with a bound takes as many evaluations as it needs. One line of JSON a
sampler, number of evaluations and seed in FILE; those that are there are not drawn again. Then the tables, and the same
judge's figures for texts whose quality is known.
"""

import argparse
import json
import pathlib
from typing import NamedTuple

import numpy as np

import dfm_jax
from benchmarks.judge_scale import scale
from benchmarks.runs_compared import generator, mean_and_error, read_text, score

EVALUATIONS = (8, 16, 32, 64, 128)


class Sampler(NamedTuple):
    """A method and a corrector by their names. rounds: evaluations a step. free: it takes what it needs."""

    method: str
    corrector: str = ""
    rounds: int = 1
    free: bool = False

    def __str__(self) -> str:
        return self.method + (f" and {self.corrector}" if self.corrector else "")


SAMPLERS = {
    "mask": [
        Sampler("exact"),
        *(Sampler(f"unmask:order={order}") for order in ("random", "confidence", "margin", "entropy")),
        *(Sampler(f"unmask:order=entropy,bound={bound}", free=True) for bound in (0.2, 1.0, 4.0)),
        Sampler("exact", "resample:rate=0.1", 2),
        Sampler("exact", "gibbs:sites=8", 2),
        Sampler("exact", "gibbs:informed=8", 2),
    ],
    "uniform": [
        Sampler("exact"),
        Sampler("ancestral"),
        Sampler("psi"),
        Sampler("exact", "resample:rate=0.1", 2),
        Sampler("exact", "gibbs:sites=8", 2),
        Sampler("exact", "gibbs:informed=8", 2),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    run, out = dfm_jax.load(args.run), args.out or args.run / "samplers.jsonl"
    text = read_text(args.texts, run.config)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    known = {(row["sampler"], row["asked"], row["seed"]) for row in rows}
    samplers = SAMPLERS[run.config.flow.source_distribution]
    for sampler in samplers:
        for asked in (0,) if sampler.free else EVALUATIONS:
            generate = None
            for seed in range(args.seeds):
                if (str(sampler), asked, seed) in known:
                    continue
                if generate is None:
                    steps = max(asked // sampler.rounds, 1)
                    generate = generator(
                        run, args.texts, method=sampler.method, corrector=sampler.corrector, steps=steps
                    )
                # Sequences of other numbers have other noise.
                drawn = next(generate(run.model, args.texts, start=seed * args.texts))
                row = {"sampler": str(sampler), "asked": asked, "seed": seed, **score(text.judge, drawn.tokens)}
                row["evaluations"] = float(drawn.evaluations.trunk.mean())
                rows.append(row)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    print(f"\n| sampler | {' | '.join(map(str, EVALUATIONS))} |\n|{'---|' * (1 + len(EVALUATIONS))}")
    for sampler in samplers:
        cells = []
        for asked in (0,) if sampler.free else EVALUATIONS:
            own = [row for row in rows if row["sampler"] == str(sampler) and row["asked"] == asked]
            nats, entropy, spent = ([row[name] for row in own] for name in ("nats", "entropy", "evaluations"))
            cells.append(f"{mean_and_error(nats)}, {np.mean(entropy):.2f} ({np.mean(spent):.1f})")
        print(f"| {sampler} | {' | '.join(cells)} |")
    for name, figures in scale(text).items():
        print(f"| {name} | {figures['nats']:.3f}, {figures['entropy']:.2f} |")


if __name__ == "__main__":
    main()
