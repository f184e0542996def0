"""The evaluation loss: the whole corpus, the same noise every time, the objective of training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import toys
from toy_network import ExactNetwork, draw_batches, make_problem

from dfm_jax import flow
from dfm_jax.data import Batch
from dfm_jax.evaluation.loss import EvaluationLoss

A = toys.TOYS["A"]
PROBLEM = make_problem(flow.MaskSource(3), parametrization="leave_one_out")
KEY = jax.random.key(7)


def batches(blocks: int, batch_size: int):
    drawn = draw_batches(np.random.default_rng(0), A.data, A.q, blocks, batch_size)
    return [(Batch(tokens), weights) for tokens, weights in drawn]


def test_loss_is_the_bound_and_repeats_exactly():
    loss = EvaluationLoss(PROBLEM, network=ExactNetwork(PROBLEM, A.data, A.q))
    first = loss(None, batches(20_000, 8192), key=KEY)
    assert first == loss(None, batches(20_000, 8192), key=KEY)
    assert abs(first["eval/loss"] - A.entropy / 2) < 3 * first["eval/loss_stderr"]
    assert first["eval/perplexity"] == pytest.approx(np.exp(first["eval/loss"]))
    other = loss(None, batches(20_000, 5000), key=KEY)
    assert other["eval/loss"] == pytest.approx(first["eval/loss"], rel=1e-6)


def test_times_fill_the_interval_for_any_number_of_blocks():
    loss = EvaluationLoss(PROBLEM)
    for count in (7, 64, 1000):
        t, r = loss.times(np.arange(count))
        gaps = np.diff(np.concatenate([[0.0], np.sort(t.astype(np.float64)), [1 - PROBLEM.time_epsilon]]))
        assert gaps.max() < 2.7 / count
        np.testing.assert_allclose(t + r, 1.0, atol=1e-6)


def test_kept_positions_do_not_count():
    network = ExactNetwork(PROBLEM, A.data, A.q)
    coupling = flow.ConditionalCoupling(prompt_rate=1.0, max_fraction=0.5)
    conditional = dataclasses.replace(PROBLEM, coupling=coupling)
    figures = EvaluationLoss(conditional, network=network)(None, batches(20_000, 20_000), key=KEY)
    # Half the prompts are empty, half the first token: (H + H(rest | prompt)) / (2 + 1) tokens (mathematics.md B).
    expected = (A.entropy + 0.9203113520) / 3
    assert abs(figures["eval/loss"] - expected) < 0.02


def test_an_objective_that_bounds_nothing_has_no_perplexity():
    objective = flow.get_objective("cross_entropy", path=PROBLEM.path, source=PROBLEM.source, suppress_mask=True)
    problem = dataclasses.replace(PROBLEM, objective=objective, parametrization="posterior")
    figures = EvaluationLoss(problem, network=ExactNetwork(problem, A.data, A.q))(None, batches(50, 50), key=KEY)
    assert "eval/perplexity" not in figures and figures["eval/loss"] > 0
    with pytest.raises(ValueError, match="at least one block"):
        EvaluationLoss(PROBLEM)(None, [], key=KEY)


class FlatNetwork:
    """log p(x_1^i | x_t) = -log 5 everywhere."""

    def features(self, model, x_t, t):
        return jnp.zeros((*x_t.shape, 6))

    def answer(self, model, features, query):
        return flow.answer_from_logits(features.at[..., 5].set(-jnp.inf), query)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("coupling", ["independent", "conditional"])
@pytest.mark.parametrize("loss", ["masked_count", "masked_elbo"])
def test_a_flat_network_pays_log_5_for_every_token_that_is_not_kept(coupling, loss):
    """Whatever the coupling keeps: a position is charged L / n with the probability n / L."""
    problem = make_problem(flow.MaskSource(5))
    objective = flow.get_objective(loss, path=problem.path, source=problem.source, suppress_mask=True)
    problem = dataclasses.replace(problem, objective=objective, coupling=flow.get_coupling(coupling))
    tokens = np.random.default_rng(0).integers(0, 5, (20_000, 12)).astype(np.int32)
    rows = [(Batch(tokens), np.ones(len(tokens), np.float32))]
    figures = EvaluationLoss(problem, network=FlatNetwork())(None, rows, key=KEY)
    assert figures["eval/loss"] == pytest.approx(np.log(5), abs=4 * figures["eval/loss_stderr"] + 2e-3)
    assert figures["eval/loss_stderr"] < 0.02


def test_what_a_batch_says_is_given_is_kept_and_free():
    """Both tokens of toy A, the first given: what is left is H(second | first)."""
    network = ExactNetwork(PROBLEM, A.data, A.q)
    rows = [(Batch(b.tokens, np.tile([True, False], (len(b.tokens), 1))), w) for b, w in batches(20_000, 20_000)]
    figures = EvaluationLoss(PROBLEM, network=network)(None, rows, key=KEY)
    assert abs(figures["eval/loss"] - 0.9203113520) < 4 * figures["eval/loss_stderr"] < 0.08
