"""Do learned exponents (GenMD4) lower the bound? One network on paired seeds, with exponents learned and all equal.

    PYTHONPATH=. python benchmarks/learned_exponents.py [--corpora code,pydocs] [--seeds 0,1,2] [--steps 1000]

* `learned` takes two samples of x_t per text, B texts a step.
* `equal` is the plain path, w = 1, on as many rows: 2 B texts a step. The same arithmetic, twice the text.
* `capitals-first` is fixed by hand: w = 4 for A..Z and 1 for all else, on as many rows.
* `equal-half` is the plain path on the texts of `learned`, with half its arithmetic.

With the exact posterior the bound is the entropy for every w, so that w matters only through what the network has not
learned. `code` was made so that the order of revealing might matter: a capital letter that stands for (a, b), each of
0..4, then a, b and a + b mod 5 as small letters, five for each. Each small letter is a table of the capital; of the
small letters, two give the third by arithmetic modulo 5. Its entropy is ln 25 a record of four, and a network that sees
no absolute position pays ln 4 more, as all masks look alike to it. `pydocs` is Python's documentation.

Judged by the bound up to kappa = 1 (with unequal exponents the one up to 1 - eps leaves out more or less), on the same
validation blocks with the same noise; differences are between runs of one seed.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np

import dfm_jax
from benchmarks.runs_compared import mean_and_error, train
from dfm_jax import corpora
from dfm_jax.run import Run

COMMON = {
    "flow.path": "genmd4",
    "flow.source_distribution": "mask",
    "flow.loss_function": "masked_elbo",
    "model.hidden_size": 64,
    "model.n_heads": 2,
    "eval.elbo": False,
    "eval.perplexity": False,
    "training.snapshot": 0,
    "training.eval_freq": 0,
    "logging.log_freq": 200,
    "data.num_workers": 1,
}
# Fields, and texts a step in units of B.
ARMS: dict[str, tuple[dict[str, object], int]] = {
    "equal": ({}, 2),
    "equal-half": ({}, 1),
    "capitals-first": ({"flow.exponents": "{workdir}/first.npy"}, 2),
    # The default rate, a tenth, hardly moves them in so few steps.
    "learned": ({"flow.exponents": "learned", "optim.exponents_lr": 10.0}, 1),
}
LENGTHS = {"code": 4, "pydocs": 32}
TEXTS = {"code": 64, "pydocs": 16}  # B
# Whose mean exponent is shown, relative to that of all tokens of the validation text.
CLASSES = {
    "capitals": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "a-e": "abcde",
    "f-j": "fghij",
    "k-o": "klmno",
    "p-z": "pqrstuvwxyz",
    "digits": "0123456789",
    "space": " ",
    "newline": "\n",
}
BLOCKS, TIME_POINTS = 1024, 32


def write_code(folder: pathlib.Path) -> dict[str, object]:
    """Writes the corpus `code`; returns the fields that name it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    fields: dict[str, object] = {"data.cache_dir": folder}
    for name, records in (("train", 60_000), ("valid", 2000)):
        text = []
        for a, b in rng.integers(5, size=(records, 2)).tolist():
            text += [chr(ord("A") + 5 * a + b), chr(ord("a") + a), chr(ord("f") + b), chr(ord("k") + (a + b) % 5)]
        file = folder / f"{name}.txt"
        if not file.exists():
            file.write_text("".join(text))
        fields[f"data.{name}"] = file
    return fields


def bound(run: Run) -> float:
    """Nats per token of at most BLOCKS validation blocks, up to kappa = 1."""
    blocks = corpora.get_stream(run.config, "data.valid", run.tokenizer).blocks(run.config.model.length)
    chosen = np.linspace(0, len(blocks) - 1, min(BLOCKS, len(blocks))).astype(int)
    real = np.stack([np.asarray(blocks[i], np.int32) for i in chosen])
    (result,) = run.likelihood(real, time_points=TIME_POINTS).values()
    assert result.exact is not None
    return result.exact[0]


def classes(run: Run) -> dict[str, float]:
    """Geometric mean of w over a class of tokens, each as often as it occurs, over that of all tokens."""
    stream = corpora.get_stream(run.config, "data.valid", run.tokenizer)
    ids = stream.read(0, min(stream.num_tokens, 100_000))
    log_w = np.log(np.asarray(run.model.exponents()))[ids]
    found = {name: np.isin(ids, list(members.encode())) for name, members in CLASSES.items()}
    return {
        name: round(float(np.exp(log_w[here].mean() - log_w.mean())), 3) for name, here in found.items() if here.any()
    }


def table(rows: list[dict]) -> str:
    lines = [
        "| corpus | seeds | exponents | bound, nats/token | less `equal` | learned w |",
        "|---|---|---|---|---|---|",
    ]
    for corpus, arm in dict.fromkeys((row["corpus"], row["arm"]) for row in rows):
        runs = {row["seed"]: row for row in rows if (row["corpus"], row["arm"]) == (corpus, arm)}
        base = {row["seed"]: row["bound"] for row in rows if (row["corpus"], row["arm"]) == (corpus, "equal")}
        cells = [mean_and_error([row["bound"] for row in runs.values()])]
        cells.append(mean_and_error([row["bound"] - base[seed] for seed, row in runs.items()]))
        shown = runs[min(runs)]["w"]
        cells.append(", ".join(f"{name} {np.mean([r['w'][name] for r in runs.values()]):.2f}" for name in shown))
        lines.append(f"| {corpus} | {len(runs)} | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", default=",".join(LENGTHS), help=", ".join(LENGTHS))
    parser.add_argument("--arms", default=",".join(ARMS), help=", ".join(ARMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/learned_exponents"))
    given = parser.parse_args()
    chosen, arms = given.corpora.split(","), given.arms.split(",")
    for flag, names, accepted in (("corpora", chosen, LENGTHS), ("arms", arms, ARMS)):
        if unknown := set(names) - set(accepted):
            parser.error(f"--{flag}={','.join(sorted(unknown))}: accepted {', '.join(accepted)}")

    given.workdir.mkdir(parents=True, exist_ok=True)
    capital = np.isin(np.arange(257), list(CLASSES["capitals"].encode()))
    np.save(given.workdir / "first.npy", np.where(capital, 4.0, 1.0))
    rows = []
    for corpus in chosen:
        text = write_code(given.workdir / "code") if corpus == "code" else {}
        for seed in [int(seed) for seed in given.seeds.split(",")]:
            for arm in ("equal", *(arm for arm in arms if arm != "equal")):
                started = time.monotonic()
                folder = given.workdir / f"{corpus}-{arm}-{seed}"
                changes = {"model.length": LENGTHS[corpus], "optim.n_iters": given.steps, "training.seed": seed}
                fields, times = ARMS[arm]
                changes["training.batch_size"] = times * TEXTS[corpus]
                fields = {name: str(value).format(workdir=given.workdir) for name, value in fields.items()}
                train(folder, {**COMMON, **text, **fields, **changes})
                trained = time.monotonic()
                run = dfm_jax.load(folder)
                row = {"corpus": corpus, "arm": arm, "seed": seed, "steps": given.steps, "bound": bound(run)}
                row["w"] = classes(run) if arm == "learned" else {}
                rows.append(row)
                seconds = {"train": round(trained - started, 1), "judge": round(time.monotonic() - trained, 1)}
                print(json.dumps({**row, "seconds": seconds}), flush=True)
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
