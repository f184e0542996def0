"""The plan of a run and its times, by hand."""

import types
from typing import Any

import jax
import pytest

from dfm_jax import config as configs
from dfm_jax.models import flops
from dfm_jax.run.plan import Plan
from dfm_jax.runtime.mesh import MeshShape, make_mesh


def stream(tokens: int, documents: int = 12) -> Any:
    manifest = types.SimpleNamespace(
        corpus="mine.txt", tokenizer="bytes", num_documents=documents, num_bytes=tokens, num_tokens=tokens
    )
    return types.SimpleNamespace(num_tokens=tokens, manifest=manifest, num_blocks=lambda length: tokens // length)


@pytest.fixture
def plan():
    values = {
        "data.train": "mine.txt", "data.valid": "", "tokenizer.name": "bytes", "eval.judge": "", "eval.max_blocks": 40,
        "eval.corpora": ("data.valid",), "eval.time_points": 10, "eval.num_samples": 4, "sampling.steps": 16,
        "model.length": 100, "model.hidden_size": 32, "model.n_blocks": 2, "model.n_heads": 2, "optim.warmup": 10,
        "training.batch_size": 10, "optim.n_iters": 1000, "training.eval_freq": 300, "training.snapshot": 500,
        "training.perplexity_freq": 0, "checkpoint.keep_best": True,
    }  # fmt: skip
    config = configs.replace(configs.Config(), values)
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    return Plan(config, mesh, stream(100_000), stream(5_000), {"mine.txt (held out)": 40}, True, 257)


def test_what_is_said_before_the_first_step(plan):
    assert plan.lines() == [
        "data: mine.txt, 100,000 tokens of bytes, 100.0 steps an epoch",
        "      12 documents, 1.00 bytes a token; 1,000 steps of 10 x 100 tokens see it 10.0 times",
        "validation: held out of mine.txt (5%), 5,000 tokens, 40 blocks looked at",
        "on the way: the loss of the validation text every 300 steps, a checkpoint every 500, the best checkpoint is "
        "kept and used",
        "at the end: the likelihood of mine.txt (held out), 40 blocks at 10 times; 4 samples of 16 steps",
    ]


def test_the_times_follow_from_that_of_a_step(plan):
    # 0.3 s a step of 1,000 tokens: a forward pass of as many takes 0.1 s. Four losses, the likelihood, the samples.
    line = plan.times(0.3)
    losses, likelihood, samples = 4 * 40 * 0.01, 40 * 10 * 0.01, 4 * 16 * 0.01
    total = 300 + losses + likelihood + samples
    assert line.startswith(f"time: about 5:{round(total) - 300:02d} in all (5:00 training, 0:02 its evaluations, ")
    assert "0:04 the likelihood at the end, 0:01 samples), by 0.3 seconds a step" in line


def test_hours_on_a_card_that_is_known(plan, monkeypatch):
    operations = flops.training_step(plan.config, 257)
    monkeypatch.setattr(flops, "peak_per_second", lambda mesh: operations / 3.6)  # 3.6 s a step at its peak
    (line,) = [line for line in plan.lines() if line.startswith("training: ")]
    assert line == "training: 4:00:00 at 25%, 2:30:00 at 40%, 1:49:05 at 55% of the peak"
