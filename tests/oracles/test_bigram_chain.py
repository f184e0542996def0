"""A character chain over 65 symbols whose exact posterior is forward-backward (mathematics.md D.4).

The transition counts are those of the Tiny Shakespeare text. With the exact leave-one-out law as the model, the mask
bound and the time-reversal bound are the exact negative log-likelihood; the one-way uniform bound is 0.57 nats a token
above it. Forward-backward is written here from the definition of the chain.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow

V, LENGTH, SEQUENCES = 65, 24, 3072
FIXTURE = pathlib.Path(__file__).parent.parent / "fixtures" / "flow" / "bigram65.npz"


def chain() -> tuple[np.ndarray, np.ndarray]:
    """The law of the first symbol (V,) and the transitions (V, V)."""
    counts = np.load(FIXTURE)["counts"].astype(np.float64)
    return counts.sum(axis=1) / counts.sum(), counts / counts.sum(axis=1, keepdims=True)


def sample(first: np.ndarray, step: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x = np.empty((SEQUENCES, LENGTH), np.int32)
    x[:, 0] = rng.choice(V, SEQUENCES, p=first)
    cumulative = np.cumsum(step, axis=1)
    for i in range(1, LENGTH):
        u = rng.random(SEQUENCES)[:, None]
        x[:, i] = np.minimum((cumulative[x[:, i - 1]] < u).sum(axis=1), V - 1)
    return x


def negative_log_likelihood(first: np.ndarray, step: np.ndarray, x: np.ndarray) -> np.ndarray:
    return -np.log(first[x[:, 0]]) - np.log(step[x[:, :-1], x[:, 1:]]).sum(axis=1)


def leave_one_out(first: np.ndarray, step: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """p(x_1^i = v | all evidence but position i's), (N, L, V), from evidence C(z_i | v) (N, L, V)."""
    ahead, back = np.empty_like(evidence), np.ones_like(evidence)
    ahead[:, 0] = first
    for i in range(1, LENGTH):
        ahead[:, i] = (ahead[:, i - 1] * evidence[:, i - 1]) @ step
        ahead[:, i] /= ahead[:, i].sum(axis=1, keepdims=True)
    for i in range(LENGTH - 2, -1, -1):
        back[:, i] = (back[:, i + 1] * evidence[:, i + 1]) @ step.T
        back[:, i] /= back[:, i].sum(axis=1, keepdims=True)
    xhat = ahead * back
    return xhat / xhat.sum(axis=-1, keepdims=True)


def estimate(source_name: str, names: list[str]) -> dict[str, tuple[float, float]]:
    """For each bound, the mean of bound - NLL in nats per token, and its standard error.

    xhat at a position does not depend on the token there, so that token is averaged over instead of drawn: x_1 with
    its probability, and one other token for all the others. No jump rate multiplies a rare event, and the noise is
    some hundredths of that of the plain estimator.
    """
    first, step = chain()
    rng = np.random.default_rng(7)
    x_1 = sample(first, step, rng)
    path, source = flow.MixtureDiscreteProbPath(flow.CondOTScheduler()), flow.get_source(source_name, V)
    time, _ = flow.sample_times(jax.random.key(0), SEQUENCES, method="stratified")
    keys = jax.random.split(jax.random.key(1))
    x_t = np.asarray(path.sample(keys[0], source.sample(keys[1], x_1.shape), jnp.asarray(x_1), time).x_t)
    kappa, sigma = (np.asarray(x, np.float64)[:, None] for x in time)
    p = np.asarray(source.probs(jnp.asarray(x_t)), np.float64)[:, :, None]
    evidence = kappa[..., None] * (np.arange(V) == x_t[:, :, None]) + sigma[..., None] * p
    xhat = leave_one_out(first, step, evidence)
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.log(np.pad(xhat, ((0, 0), (0, 0), (0, source.num_states - V)))), jnp.float32)
    if source_name == "mask":
        other, kept = np.full_like(x_1, V), kappa
    else:
        other, kept = (x_1 + rng.integers(1, V, x_1.shape, dtype=np.int32)) % V, kappa + sigma / V
    nll, results = negative_log_likelihood(first, step, x_1), {}
    for name in names:
        objective = flow.get_objective(name, path=path, source=source, parametrization="leave_one_out")
        at_x_1, at_other = (
            np.asarray(flow.loss_from_logits(objective, logits, jnp.asarray(x_1), jnp.asarray(z), time), np.float64)
            for z in (x_1, other)
        )
        excess = ((kept * at_x_1 + (1 - kept) * at_other).sum(axis=1) - nll) / LENGTH
        results[name] = float(excess.mean()), float(excess.std() / np.sqrt(SEQUENCES))
    return results


def test_mask_bound_is_the_likelihood():
    mean, error = estimate("mask", ["generalized_kl"])["generalized_kl"]
    assert error < 0.012 and abs(mean) < 3.5 * error


def test_time_reversal_is_tight_and_the_one_way_bound_is_not():
    results = estimate("uniform", ["time_reversal", "generalized_kl"])
    mean, error = results["time_reversal"]
    assert error < 0.015 and abs(mean) < 3.5 * error
    mean, error = results["generalized_kl"]
    assert error < 0.012 and mean == pytest.approx(0.57, abs=3.5 * error)


def test_the_fixture_is_the_text():
    folder = os.environ.get("DFM_TEST_DATA")
    if not folder:
        pytest.skip("DFM_TEST_DATA is not set: no text to count")
    raw = np.frombuffer((pathlib.Path(folder) / "text" / "tinyshakespeare.txt").read_bytes(), np.uint8)
    saved = np.load(FIXTURE)
    ids = np.searchsorted(saved["symbols"], raw)
    counts = np.zeros((V, V), np.int64)
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    np.testing.assert_array_equal(counts, saved["counts"])
