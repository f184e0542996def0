"""Golden runs: what two versions of the program make of the same commands, compared number by number.

    python tests/golden/golden.py record FOLDER [NAME ...]   # in a checkout of each version, same machine and jax
    python tests/golden/golden.py compare OLD NEW

`record` uses only what a user relies on: command lines, a run's files, `dfm_jax.load`. For each case it trains a tiny
model for 20 updates, measures its likelihood, draws eight sequences with two samplers and exports the weights.
`compare` wants tokens equal, losses and bounds to 1e-6 (relative) and weights to 1e-5 (absolute).
"""

import contextlib
import io
import json
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

SMALL = """model.hidden_size=32 model.cond_dim=16 model.length=32 model.n_blocks=2 model.n_heads=2 model.dropout=0.1
training.batch_size=8 training.snapshot=0 training.eval_freq=10 training.perplexity_freq=0 optim.warmup=5
optim.n_iters=20 optim.lr=3e-3 flow.sampling_steps=16 eval.batch_size=16 eval.time_points=4 eval.perplexity=False
eval.judge= sampling.num=8 sampling.batch_size=8 logging.log_freq=1 data.train=text.txt data.valid=text.txt
eval.corpora=text.txt data.num_workers=0 tokenizer.name=bytes training.unroll=1"""

# Case -> (config, fields, samplers).
CASES: dict[str, tuple[str, str, tuple[str, str]]] = {
    "mixture_uniform_gkl": ("uniform_gkl", "", ("exact", "euler")),
    "mixture_uniform_ce": ("uniform_ce", "model.time_input=kappa", ("exact", "two_stage:div_free=1")),
    "mixture_uniform_tr": ("uniform_tr", "optim.ema_decay=0.9", ("ancestral", "exact")),
    "mixture_mask_ce": ("mask_ce", "flow.exponent=2", ("exact", "euler")),
    "mixture_mask_gkl": ("mask_gkl", "model.parametrization=leave_one_out", ("exact", "first_hitting")),
    "mixture_mask_md4": ("mask_md4", "training.grad_accum=2", ("exact", "remask:eta=0.1")),
    "mixture_mask_count": (
        "mask_md4",
        "flow.loss_function=masked_count flow.scheduler_type=linear model.time_conditioning=False",
        ("exact", "corrector"),
    ),
    "mixture_unigram": (
        "uniform_gkl",
        "flow.source_distribution=unigram model.parametrization=leave_one_out",
        ("exact", "thinning"),
    ),
    "three_term_mask": ("three_term", "", ("ancestral", "exact")),
    "kinetic_optimal": ("unigram_ko", "", ("exact", "maximal")),
    "genmd4_fixed": ("mask_genmd4", "flow.exponents=exponents.npy", ("exact", "maximal")),
    "genmd4_learned": ("mask_genmd4", "", ("exact", "maximal")),
    "metric": ("metric_ko", "eval.elbo=True flow.embeddings=random:8", ("kinetic_optimal", "euler")),
    "prompted": ("prompted", "", ("exact", "euler")),
}


def text() -> str:
    """About 30 kB that differ from line to line, made without a generator of random numbers."""
    line = "the quick brown fox jumps over a lazy dog while seven wizards mix pale blue ink"
    words = line.split()
    return "".join(" ".join(words[(i * j + j * j) % 16] for j in range(1, 9)) + ".\n" for i in range(1, 700))


def command(words: list[str]) -> None:
    """Runs one command line in this process; what it prints is shown only where it fails."""
    from dfm_jax.__main__ import main

    printed, sys.argv = io.StringIO(), ["main.py", *words]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = main()
    if status:
        raise SystemExit(f"{' '.join(words)}: status {status}\n{printed.getvalue()[-3000:]}")


def record(folder: pathlib.Path, names: list[str]) -> None:
    import numpy as np

    sys.path.insert(0, os.getcwd())
    folder.mkdir(parents=True, exist_ok=True)
    configs = pathlib.Path("configs").resolve()
    os.chdir(folder)
    pathlib.Path("text.txt").write_text(text())
    np.save("exponents.npy", 0.5 + (np.arange(257) % 7) / 7)
    import dfm_jax

    for name in names or CASES:
        config, fields, samplers = CASES[name]
        run = f"runs/{name}"
        words = [f"--config={configs}/{config}.py", f"--workdir={run}", f"--config.sampling.method={samplers[0]}"]
        command([*words, *(f"--config.{field}" for field in (*SMALL.split(), *fields.split()))])
        command(["--mode=export", f"--workdir={run}", f"--output={run}/weights.safetensors"])
        loaded = dfm_jax.load(run)
        tokens = {sampler: loaded.sample_tokens(8, method=sampler, steps=16) for sampler in samplers}
        gap = loaded.sample(2, prompt="the <gap:4> fox", steps=8)
        x_t = np.asarray(tokens[samplers[0]][:4])
        logits = loaded.logits(*map(__import__("jax").numpy.asarray, (x_t, np.linspace(0, 0.9, 4, dtype=np.float32))))
        np.savez(f"{name}.npz", **tokens, logits=np.asarray(logits))
        pathlib.Path(f"{name}.json").write_text(json.dumps({"gap": gap}))
        print(name, "recorded", flush=True)


def numbers(folder: pathlib.Path, name: str) -> dict:
    """{what: array} of one case."""
    import ml_dtypes  # noqa: F401  (bfloat16 for safetensors)
    import numpy as np
    from safetensors.numpy import load_file

    run = folder / "runs" / name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [[line["step"], key, line[key]] for line in lines for key in sorted(line) if "loss" in key]
    found: dict = {"losses": np.array([value for *_, value in losses], np.float64)}
    report = json.loads((run / "eval" / "step_20.json").read_text())
    bounds = report["likelihood"]["text.txt"]
    flat = bounds if isinstance(bounds, list) else list(bounds.values()) if "nats_per_token" not in bounds else [bounds]
    found["bounds"] = np.array([entry["nats_per_token"] for entry in flat], np.float64)
    found["weights"] = load_file(run / "weights.safetensors")
    with np.load(folder / f"{name}.npz") as arrays:
        found["logits"] = arrays["logits"]
        found["tokens"] = {key: arrays[key] for key in arrays.files if key != "logits"}
    found["gap"] = json.loads((folder / f"{name}.json").read_text())["gap"]
    return found


def compare(old_folder: pathlib.Path, new_folder: pathlib.Path) -> int:
    import numpy as np

    bad = 0
    print("| case | losses (relative) | bounds (relative) | weights (absolute) | logits (absolute) | tokens |")
    print("|---|---|---|---|---|---|")
    for name in CASES:
        if not (new_folder / f"{name}.json").exists() or not (old_folder / f"{name}.json").exists():
            print(f"| {name} | not recorded |")
            bad += 1
            continue
        old, new = numbers(old_folder, name), numbers(new_folder, name)
        if old["losses"].shape != new["losses"].shape or old["weights"].keys() != new["weights"].keys():
            print(f"| {name} | other losses or weights: {old['losses'].shape} {new['losses'].shape} |")
            bad += 1
            continue
        relative = [
            float(np.max(np.abs(old[what] - new[what]) / np.maximum(np.abs(old[what]), 1e-12)))
            for what in ("losses", "bounds")
        ]
        weights = max(
            float(np.max(np.abs(old["weights"][key].astype(np.float64) - new["weights"][key].astype(np.float64))))
            for key in old["weights"]
        )
        logits = float(np.max(np.abs(np.where(np.isfinite(old["logits"]), old["logits"] - new["logits"], 0))))
        equal = all(np.array_equal(old["tokens"][key], new["tokens"][key]) for key in old["tokens"])
        equal = equal and old["gap"] == new["gap"]
        good = max(relative) <= 1e-6 and weights <= 1e-5 and equal
        bad += not good
        figures = " | ".join(f"{value:.1e}" for value in (*relative, weights, logits))
        print(f"| {name} | {figures} | {'equal' if equal else 'DIFFER'} |{'' if good else ' <--'}")
    return bad


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("record", "compare"):
        sys.exit(__doc__)
    if sys.argv[1] == "record":
        record(pathlib.Path(sys.argv[2]).absolute(), sys.argv[3:])
    else:
        sys.exit(min(compare(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])), 100))
