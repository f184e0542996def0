"""Every shipped config runs end to end at a tiny size: train, evaluate, sample."""

import json
import pathlib

import numpy as np
import pytest

import dfm_jax
from dfm_jax import cli
from dfm_jax.cli import command_line
from dfm_jax.training import metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = {
    "data.num_workers": 1,
    "tokenizer.name": "bytes",
    "training.batch_size": 8,
    "training.snapshot": 4,
    "training.eval_freq": 4,
    "training.perplexity_freq": 0,
    "optim.warmup": 2,
    "optim.n_iters": 6,
    "model.hidden_size": 32,
    "model.cond_dim": 16,
    "model.length": 32,
    "model.n_blocks": 2,
    "model.n_heads": 2,
    "flow.sampling_steps": 8,
    "eval.batch_size": 8,
    "eval.elbo": True,
    "eval.time_points": 4,
    "eval.num_samples": 3,
    "eval.judge": "",
    "sampling.num": 3,
    "sampling.batch_size": 2,
    "logging.log_freq": 2,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
}
CONFIGS = (
    "uniform_gkl",
    "uniform_ce",
    "mask_gkl",
    "mask_ce",
    "mask_md4",
    "uniform_tr",
    "prompted",
    "text8",
    "lm1b",
    "owt",
)
# One of each source and of each kind of path: what a run does in Python and once more depends on nothing else.
IN_PYTHON = ("uniform_gkl", "mask_md4", "prompted", *("three_term", "unigram_ko", "mask_genmd4", "metric_ko"))
OTHER_PATHS = ("three_term", "unigram_ko", "mask_genmd4", "metric_ko")


def main(*words: str) -> int:
    return cli.run(command_line.parse(["main.py", *words]))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    rng = np.random.default_rng(0)
    words = [
        "all",
        "work",
        "and",
        "no",
        "play",
        "makes",
        "jack",
        "a",
        "dull",
        "boy",
        "who",
        "trains",
        "small",
        "models",
        "on",
        "small",
        "texts",
    ]
    path.write_text("\n".join(" ".join(rng.choice(words, 10)) for _ in range(60)))
    return path


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "uniform_ce" else [pytest.mark.slow]) for n in CONFIGS + OTHER_PATHS]
)
def test_a_config_trains_evaluates_and_samples(name, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = {**TINY, "data.train": text, "data.valid": text, "eval.corpora": text, "data.cache_dir": text.parent}
    overrides = [f"--config.{field}={value}" for field, value in tiny.items()]
    workdir = tmp_path / "runs" / name
    assert main(f"--config={ROOT}/configs/{name}.py", *overrides) == 0
    printed = capsys.readouterr().out
    assert "next: python -m dfm_jax --mode=sample" in printed and str(pathlib.Path("runs") / name) in printed

    lines = metrics.read(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "eval/loss" in line] == [4, 6]
    assert all(np.isfinite(line["train/loss"]) for line in lines if "train/loss" in line)
    for file in ("config.json", "loss.png", "eval/report.md", "eval/step_6.json", "samples/step_6.html"):
        assert (workdir / file).stat().st_size > 100, file
    (report,) = json.loads((workdir / "eval/step_6.json").read_text())["likelihood"].values()
    assert np.isfinite(report["nats_per_token"]) and report["nats_per_token"] > 0

    # Modes on the newest run, without naming it.
    assert main("--mode=sample", "--prompt=all work <gap:5> play", "--config.sampling.seed=7") == 0
    texts = [json.loads(line)["text"] for line in (workdir / "samples/step_6-2.jsonl").open(encoding="utf-8")]
    assert len(texts) == 3 and all(text.startswith("all work ") for text in texts)
    if name not in IN_PYTHON:
        return
    (workdir / "eval/report.md").unlink()
    assert main("--mode=eval", "--noeval_perplexity") == 0
    assert "nats/token" in capsys.readouterr().out

    run = dfm_jax.load(workdir)
    assert run.sample(num=3, prompt="all work <gap:5> play", seed=7) == texts
    tokens = run.sample_tokens(num=2, seed=1)
    assert tokens.shape == (2, 32) and tokens.max() < run.tokenizer.vocab_size
    np.testing.assert_array_equal(tokens[1:], run.sample_tokens(num=2, seed=1, batch_size=1)[1:])
    assert all(np.isfinite(r.nats_per_token) for r in run.likelihood(tokens, time_points=2).values())
    x_t = np.zeros((2, 32), np.int32)
    assert run.logits(x_t, np.full(2, 0.5, np.float32)).shape == (2, 32, run.problem.source.num_states)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses(text, tmp_path):
    tiny = {**TINY, "data.train": text, "data.valid": text, "eval.corpora": text, "data.cache_dir": text.parent}
    tiny |= {"eval.elbo": False, "eval.perplexity": False}
    overrides = [f"--config.{field}={value}" for field, value in tiny.items()]
    losses = []
    for folder in ("one", "two"):
        main(f"--config={ROOT}/configs/uniform_gkl.py", f"--workdir={tmp_path / folder}", *overrides)
        losses.append([line.get("train/loss") for line in metrics.read(tmp_path / folder / "metrics.jsonl")])
    assert losses[0] == losses[1] and len(losses[0]) > 3
