"""The configs of the paths that are not the mixture learn, and their bounds are those of their paths."""

import math
import pathlib

import jax
import numpy as np
import pytest

from dfm_jax import config as configs
from dfm_jax.data import Batch, vocabulary_size
from dfm_jax.evaluation.likelihood import estimate_likelihood
from dfm_jax.experiment import conditions
from dfm_jax.experiment.problem import get_problem
from dfm_jax.runtime.mesh import MeshShape, global_batch, make_mesh
from dfm_jax.training.loop import make_trainer

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
NAMES = ["metric_ko", *(pytest.param(n, marks=pytest.mark.slow) for n in ("three_term", "unigram_ko", "mask_genmd4"))]


def tiny(name: str):
    """The config at the size of a unit test: 257 tokens of bytes, 16 of them a sequence."""
    config = configs.load_file(str(FOLDER / f"{name}.py"))
    config.tokenizer.name = "bytes"
    config.training.batch_size = 8
    config.optim.lr, config.optim.warmup, config.optim.n_iters = 3e-3, 2, 30
    config.model.hidden_size, config.model.cond_dim, config.model.length = 32, 16, 16
    config.model.n_blocks, config.model.n_heads, config.model.dropout = 1, 2, 0.0
    frozen = configs.freeze(config)
    conditions.check(frozen, "train")
    return frozen


def text(vocab_size: int) -> np.ndarray:
    """Blocks (64, 16) of one line of text, so that a few steps can learn something."""
    line = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 40, np.uint8)
    starts = np.random.default_rng(0).integers(0, len(line) - 16, 64)
    assert line.max() < vocab_size
    return np.stack([line[i : i + 16] for i in starts]).astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_config_learns(name):
    config = tiny(name)
    vocab_size = vocabulary_size("bytes")
    mesh = make_mesh(MeshShape())
    blocks, losses = text(vocab_size), []
    law = np.bincount(blocks.ravel(), minlength=vocab_size) / blocks.size
    trainer = make_trainer(config, vocab_size, mesh, get_problem(config, vocab_size, law))
    state = trainer.create()
    for step in range(30):
        state, metrics = trainer.step(state, global_batch(Batch(blocks[(8 * step) % 64 :][:8]), mesh))
        losses.append(float(metrics["loss"]))
        assert metrics["bad_steps"] == 0
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])

    model, problem = state.best_model, trainer.problem
    batches = [(blocks[:8], np.ones(8, np.float32))]
    key = jax.random.key(0)
    likelihood = estimate_likelihood(model, problem, batches, key=key, time_points=32)
    assert tuple(likelihood) == problem.path.bound_names
    for result in likelihood.values():
        # The metric bound charges every token that a network has not settled by slope of beta: 1e5 at the end.
        assert 0 < result.nats_per_token < (1e6 if name == "metric_ko" else math.log(vocab_size) + 1.5)
