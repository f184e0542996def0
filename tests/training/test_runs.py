"""Whole small runs in this process: in bfloat16, and with texts generated at intervals inside the loop."""

import pathlib

import numpy as np
import pytest

from dfm_jax import cli
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.cli import command_line
from dfm_jax.training import metrics

FIELDS = {
    "data.train": "text.txt",
    "data.valid": "text.txt",
    "data.cache_dir": "data",
    "data.num_workers": 1,
    "training.batch_size": 16,
    "training.eval_freq": 0,
    "optim.n_iters": 40,
    "optim.warmup": 5,
    "optim.lr": 3e-3,
    "model.hidden_size": 32,
    "model.cond_dim": 16,
    "model.length": 32,
    "model.n_blocks": 2,
    "model.n_heads": 2,
    "sampling.num": 2,
    "sampling.steps": 4,
    "eval.batch_size": 16,
    "eval.elbo": False,
    "eval.perplexity": False,
    "eval.judge": "",
    "logging.log_freq": 1,
}


def train(workdir: str, **fields) -> list[dict]:
    """The run's metrics."""
    overrides = FIELDS | {name.replace("__", "."): value for name, value in fields.items()}
    words = ["--config=configs/quickstart.py", f"--workdir={workdir}"]
    words += [f"--config.{name}={value}" for name, value in overrides.items()]
    assert cli.run(command_line.parse(["main.py", *words])) == 0
    return metrics.read(pathlib.Path(workdir) / "metrics.jsonl")


def losses(lines: list[dict]) -> np.ndarray:
    return np.array([line["train/loss"] for line in lines if "train/loss" in line])


@pytest.fixture(autouse=True)
def in_a_folder_with_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The same text, a hundred times over. " * 100)


@pytest.mark.slow
def test_a_bfloat16_run_learns_as_a_float32_run_does_and_generates_on_its_way():
    whole = train("float32", model__compute_dtype="float32")
    half = train(
        "bfloat16",
        model__compute_dtype="bfloat16",
        model__residual_dtype="bfloat16",
        training__perplexity_freq=16,
    )
    a, b = losses(whole), losses(half)
    assert len(a) == len(b) == 40
    # One noise: rounding to 8 bits is all that differs.
    np.testing.assert_allclose(b, a, rtol=0.05)
    assert (a != b).any() and b[-8:].mean() < 0.8 * b[:8].mean()
    assert all(line["train/bad_steps"] == 0 for line in half if "train/bad_steps" in line)
    # What is kept is float32, the moments too.
    kept = Checkpoints("bfloat16/checkpoints")
    assert {x.dtype.name for x in kept.arrays(40).values()} == {"float32", "int32"}

    generated = {line["step"] for line in half if "eval/entropy_bits" in line}
    assert generated == {16, 32} and not any("eval/entropy_bits" in line for line in whole)
    for step in generated:
        assert len(pathlib.Path(f"bfloat16/samples/step_{step}.jsonl").read_text().splitlines()) == 2
