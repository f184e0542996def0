"""A run that version 0.1 finished (10 updates, averaged parameters) loads, evaluates, samples and continues for good.

`expected.npz` holds what version 0.1 itself made of it on a processor: tokens of three samplers, logits, both bounds,
and the losses of 20 updates, of which the run in the folder has made ten.
"""

import json
import pathlib
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import dfm_jax
from dfm_jax.__main__ import main

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "run_v01"


@pytest.fixture
def old(tmp_path, monkeypatch):
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with np.load("expected.npz") as arrays:
        return dict(arrays)


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "--workdir=runs/old", *words])
    assert main() == 0


def test_it_loads_and_samples(old):
    loaded = dfm_jax.load("runs/old")
    assert loaded.step == 10
    for method in ("exact", "ancestral", "euler"):
        np.testing.assert_array_equal(loaded.sample_tokens(4, method=method, steps=8), old[method])
    t = jnp.asarray([0.0, 0.3, 0.6, 0.9], jnp.float32)
    np.testing.assert_allclose(loaded.logits(jnp.asarray(old["exact"]), t), old["logits"], atol=2e-5)


@pytest.mark.slow
def test_it_evaluates(old, monkeypatch):
    pathlib.Path("runs/old/eval/step_10.json").unlink()
    run(monkeypatch, "--mode=eval")
    report = json.loads(pathlib.Path("runs/old/eval/step_10.json").read_text())
    bounds = report["likelihood"]["valid.txt"]["bounds"]
    assert list(bounds) == ["generalized_kl", "time_reversal"]
    np.testing.assert_allclose([bound["nats_per_token"] for bound in bounds.values()], old["bounds"], rtol=1e-6)


@pytest.mark.slow
def test_it_continues(old, monkeypatch):
    run(monkeypatch, "--config.optim.n_iters=20", "--config.eval.elbo=False")
    lines = [json.loads(line) for line in pathlib.Path("runs/old/metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    np.testing.assert_allclose(losses, old["losses"], rtol=1e-5)
