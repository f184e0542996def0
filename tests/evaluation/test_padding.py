"""Positions that are not scored: noised as the others are, in no figure, and in no count of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import toys
from toy_network import ExactNetwork, draw_batches, make_problem

from dfm_jax import flow
from dfm_jax.data import Batch
from dfm_jax.evaluation.likelihood import LikelihoodEstimator, estimate_likelihood
from dfm_jax.training import corruption

A = toys.TOYS["A"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_the_figures_of_two_parts_are_those_of_the_whole(source):
    problem = make_problem(flow.get_source(source, A.vocab_size), parametrization="leave_one_out")
    (tokens, weights), *_ = draw_batches(np.random.default_rng(3), A.data, A.q, 64, 64)
    part = np.random.default_rng(4).random(tokens.shape) < 0.6

    estimator = LikelihoodEstimator(problem, 4, network=ExactNetwork(problem, A.data, A.q))

    def figures(scored: np.ndarray | None):
        return estimator(None, [(Batch(tokens, scored=scored), weights)], key=jax.random.key(1))

    whole, one, other = figures(None), figures(part), figures(~part)
    for name, result in whole.items():
        assert one[name].tokens == part.sum() and one[name].tokens + other[name].tokens == result.tokens
        total = sum(found[name].nats_per_token * found[name].tokens for found in (one, other))
        np.testing.assert_allclose(total, result.nats_per_token * result.tokens, rtol=1e-4)


def test_the_bytes_are_those_of_what_is_scored():
    problem = make_problem(flow.get_source("mask", A.vocab_size), parametrization="leave_one_out")
    (tokens, weights), *_ = draw_batches(np.random.default_rng(3), A.data, A.q, 8, 8)
    scored = np.ones(tokens.shape, bool)
    scored[:, -1] = False
    seen = []
    estimate_likelihood(
        None, problem, [(Batch(tokens, scored=scored), weights)], key=jax.random.key(1), time_points=4,
        bounds=("masked_elbo",), network=ExactNetwork(problem, A.data, A.q),
        count_bytes=lambda row: seen.append(len(row)) or 1,
    )  # fmt: skip
    assert seen == [tokens.shape[1] - 1] * 8


def test_training_noises_padding_and_charges_nothing_for_it():
    problem = make_problem(flow.get_source("mask", A.vocab_size))
    tokens = jnp.zeros((64, 8), jnp.int32)
    scored = jnp.arange(8)[None] < jnp.full((64, 1), 5)
    noisy = corruption.corrupt(Batch(tokens, scored=scored), 0, problem, seed=0, dropout=False)
    plain = corruption.corrupt(Batch(tokens), 0, problem, seed=0, dropout=False)
    np.testing.assert_array_equal(noisy.x_t, plain.x_t)
    assert (noisy.x_t[:, 5:] == A.vocab_size).any()  # masks among the padding
    np.testing.assert_array_equal(noisy.kept, ~scored)
