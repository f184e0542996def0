"""Do learned exponents (GenMD4) lower the bound? One small network on paired seeds, exponents learned or all equal.

    PYTHONPATH=. python benchmarks/learned_exponents.py [--texts 64] [--seeds 0,1,2] [--steps 2000] [--workdir DIR]

With the exact posterior the bound is the entropy for every w, so that w matters only through what the network has not
learned. The corpus is made so that the order of revealing matters to a small network: records of a capital and a small
letter (16 each, independent) and a digit that a random table of 256 entries gives for the two. To tell the digit when
both letters are there takes the table; to tell a letter from the rest takes its inverse, once for each letter. The
entropy is 2 ln 16 / 3 = 1.848 nats a token, and a network that sees no absolute position pays ln 3 a text more (1.940
in all); who has not learned the table pays 2.708.

* `equal`: all w = 1.
* `digits-last`: by hand, w = 3 for letters and 1 for digits.
* `before`: all w = 1 (a learning rate of nothing), with two samples of each text, as learning takes: twice the
  arithmetic of the first two, on the same texts.
* `learned`: the exponents learned with the network, on the samples of `before`.
* `after`: the network of `before`, practically fixed, and its exponents learned in 400 steps.

Judged by the bound up to kappa = 1, on the same validation blocks with the same noise; differences are between runs of
one seed.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np

import dfm_jax
from benchmarks.runs_compared import BARE, mean_and_error, train
from dfm_jax.experiment import streams as corpora
from dfm_jax.run.load import Run

COMMON = {
    **BARE,
    "flow.path": "genmd4",
    "flow.source_distribution": "mask",
    "flow.loss_function": "masked_elbo",
    "model.hidden_size": 64,
    "model.n_heads": 2,
    "logging.log_freq": 200,
}
LEARNED = {"flow.exponents": "learned"}
# Fields, and the arm that an arm is compared with.
ARMS: dict[str, tuple[dict[str, object], str]] = {
    "equal": ({}, "equal"),
    "digits-last": ({"flow.exponents": "{workdir}/digits_last.npy"}, "equal"),
    "before": ({**LEARNED, "optim.exponents_lr": 1e-6}, "before"),
    # The default rate, a tenth, hardly moves them in so few steps.
    "learned": ({**LEARNED, "optim.exponents_lr": 10.0}, "before"),
    "after": (
        {
            **LEARNED,
            "checkpoint.restore_from": "{workdir}/before-{seed}",
            "optim.lr": 3e-6,
            "optim.exponents_lr": 1e4,
            "optim.weight_decay": 0.0,
            "optim.warmup": 1,
            "optim.n_iters": 400,
        },
        "before",
    ),
}
LENGTH = 12
LETTERS, DIGITS = 16, 10
BLOCKS, TIME_POINTS = 512, 32


def write_corpus(folder: pathlib.Path) -> dict[str, object]:
    """Writes the corpus; returns the fields that name it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    digit = rng.integers(DIGITS, size=(LETTERS, LETTERS))
    fields: dict[str, object] = {"data.cache_dir": folder}
    for name, records in (("train", 100_000), ("valid", 4000)):
        pairs = rng.integers(LETTERS, size=(records, 2))
        text = "".join(chr(ord("A") + a) + chr(ord("a") + b) + str(digit[a, b]) for a, b in pairs)
        file = folder / f"{name}.txt"
        if not file.exists():
            file.write_text(text)
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


def letters_to_digits(run: Run) -> float:
    """Geometric mean of w over the letters, over that of the digits."""
    log_w = np.log(np.asarray(run.model.exponents()))
    capitals, small, digits = (
        log_w[ord(first) : ord(first) + n].mean() for first, n in (("A", LETTERS), ("a", LETTERS), ("0", DIGITS))
    )
    return float(np.exp((capitals + small) / 2 - digits))


def table(rows: list[dict]) -> str:
    lines = ["| arm | seeds | bound, nats/token | less that of | difference | w of letters / w of digits |"]
    lines.append("|---|---|---|---|---|---|")
    by_arm = {
        arm: {row["seed"]: row for row in rows if row["arm"] == arm} for arm in dict.fromkeys(r["arm"] for r in rows)
    }
    for arm, runs in by_arm.items():
        base = by_arm[ARMS[arm][1]]
        cells = [str(len(runs)), mean_and_error([row["bound"] for row in runs.values()])]
        if runs is base:
            cells += ["", ""]
        else:
            cells += [ARMS[arm][1], mean_and_error([row["bound"] - base[seed]["bound"] for seed, row in runs.items()])]
        ratios = [row["ratio"] for row in runs.values()]
        lines.append(f"| {arm} | {' | '.join(cells)} | {mean_and_error(ratios, 2)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(ARMS), help=f"of {', '.join(ARMS)}; an arm's base comes with it")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--texts", type=int, default=64, help="a step")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/learned_exponents"))
    given = parser.parse_args()
    wanted = given.arms.split(",")
    if unknown := set(wanted) - set(ARMS):
        parser.error(f"--arms = {','.join(sorted(unknown))}: expected {', '.join(ARMS)}")
    arms = [arm for arm in ARMS if arm in wanted or any(ARMS[name][1] == arm for name in wanted)]

    fields = write_corpus(given.workdir / "corpus")
    is_digit = np.isin(np.arange(257), [ord(str(n)) for n in range(DIGITS)])
    by_hand = np.where(is_digit, 1.0, 3.0)
    np.save(given.workdir / "digits_last.npy", by_hand)
    rows = []
    for seed in [int(seed) for seed in given.seeds.split(",")]:
        for arm in arms:
            started = time.monotonic()
            folder = given.workdir / f"{arm}-{seed}"
            own, _ = ARMS[arm]
            own = {name: str(value).format(workdir=given.workdir, seed=seed) for name, value in own.items()}
            common = {"model.length": LENGTH, "optim.n_iters": given.steps, "training.batch_size": given.texts}
            train(folder, {**COMMON, **fields, **common, "training.seed": seed, **own})
            trained = time.monotonic()
            run = dfm_jax.load(folder)
            ratio = letters_to_digits(run) if own.get("flow.exponents") == "learned" else 3.0 if own else 1.0
            row = {"arm": arm, "seed": seed, "steps": given.steps, "bound": bound(run), "ratio": ratio}
            rows.append(row)
            seconds = {"train": round(trained - started, 1), "judge": round(time.monotonic() - trained, 1)}
            print(json.dumps({**row, "seconds": seconds}), flush=True)
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
