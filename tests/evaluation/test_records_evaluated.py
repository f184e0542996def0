"""Bounds and losses of records: of the response given its prompt, per token of the response, without the padding."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import toys
from toy_network import ExactNetwork, draw_batches, make_problem

from dfm_jax import flow
from dfm_jax.data import Batch
from dfm_jax.evaluation.generation import to_text
from dfm_jax.evaluation.likelihood import estimate_likelihood
from dfm_jax.evaluation.loss import EvaluationLoss
from dfm_jax.evaluation.prompts import Prompt
from dfm_jax.evaluation.report.samples import beginning

A = toys.TOYS["A"]
REST = 0.9203113520  # H(second token | first token) of A in nats (mathematics.md B)
KEY = jax.random.key(5)


@dataclasses.dataclass(frozen=True, eq=False)
class GivenFirst(ExactNetwork):
    """The exact posterior where the first token is known."""

    def features(self, model, x_t, t):
        where = (x_t[:, None, 0] == jnp.asarray(self.data)[None, :, 0])[:, :, None]
        states, vocab = self.problem.source.num_states, self.problem.source.vocab_size
        schedule = self.problem.path.scheduler(t)
        here = (x_t[:, None, 1:] == jnp.asarray(self.data)[None, :, 1:]).astype(jnp.float32)
        law = schedule.alpha_t[:, None, None] * here
        law = law + schedule.sigma_t[:, None, None] * self.problem.source.probs(x_t[:, 1:])[:, None]
        if self.problem.parametrization == "leave_one_out":
            law = jnp.ones_like(law)  # of two tokens, one of which is given
        weight = jnp.where(where, law, 0.0) * jnp.asarray(self.q, jnp.float32)[None, :, None]
        match = jax.nn.one_hot(self.data, states, dtype=jnp.float32)
        joint = jnp.einsum("bnl,nls->bls", jnp.broadcast_to(weight, (*weight.shape[:2], 2)), match, precision="highest")
        joint = jnp.where(joint.sum(-1, keepdims=True) > 0, joint, 1.0)
        return jnp.where(jnp.arange(states)[None, None] < vocab, jnp.log(joint), -jnp.inf)


def records(blocks, batch_size, counted=1.0):
    given = np.tile([True, False], (batch_size, 1))
    for tokens, weights in draw_batches(np.random.default_rng(1), A.data, A.q, blocks, batch_size):
        yield Batch(tokens, given, counted=np.full(batch_size, counted, np.float32)), weights


@pytest.mark.slow
@pytest.mark.parametrize(("source", "bounds"), [("mask", None), ("uniform", ["time_reversal"])])
def test_bounds_of_records_are_of_the_response_given_the_prompt(source, bounds):
    problem = make_problem(flow.get_source(source, 3), parametrization="leave_one_out")
    network = GivenFirst(problem, A.data, A.q)
    results = estimate_likelihood(
        None, problem, records(20_000, 8192), key=KEY, time_points=32, network=network, bounds=bounds
    )
    assert set(results) == ({"generalized_kl", "masked_elbo", "masked_count"} if source == "mask" else set(bounds))
    for result in results.values():
        assert result.blocks == result.tokens == 20_000
        nats, error = result.exact or (result.nats_per_token, result.stderr)
        assert abs(nats - REST) < 3 * error + 1e-4


def test_padding_costs_and_is_not_counted():
    """Of two predicted tokens one is padding: the bound of both is divided by one."""
    problem = make_problem(flow.MaskSource(3), parametrization="leave_one_out")
    network = ExactNetwork(problem, A.data, A.q)
    drawn = list(draw_batches(np.random.default_rng(1), A.data, A.q, 4000, 4000))
    both = [(tokens, weights) for tokens, weights in drawn]
    padded = [
        (Batch(tokens, np.zeros((4000, 2), bool), counted=np.ones(4000, np.float32)), weights)
        for tokens, weights in drawn
    ]
    options = {"key": KEY, "time_points": 16, "network": network, "count_bytes": len}
    whole, counted = (estimate_likelihood(None, problem, batches, **options) for batches in (both, padded))
    for name, bound in whole.items():
        assert counted[name].nats_per_token == pytest.approx(2 * bound.nats_per_token, rel=1e-6)
        assert counted[name].stderr == pytest.approx(2 * bound.stderr, rel=1e-6)
        assert (counted[name].tokens, bound.tokens) == (4000, 8000)
        # The same bits, over the bytes of the tokens that are counted.
        assert counted[name].bits_per_byte == pytest.approx(2 * bound.bits_per_byte, rel=1e-6)
        assert counted[name].bits_per_byte == pytest.approx(counted[name].nats_per_token / math.log(2), rel=1e-6)


def test_the_evaluation_loss_of_records():
    problem = make_problem(flow.MaskSource(3), parametrization="leave_one_out")
    network = GivenFirst(problem, A.data, A.q)
    figures = EvaluationLoss(problem, network=network)(None, records(20_000, 8192), key=KEY)
    assert abs(figures["eval/loss"] - REST) < 3 * figures["eval/loss_stderr"]
    assert figures["eval/perplexity"] == pytest.approx(np.exp(figures["eval/loss"]), rel=1e-6)


def test_an_answer_ends_at_its_own_end_of_text():
    class Letters:
        eos_id = 0

        def decode(self, ids):
            return "".join(chr(96 + i) if i else "." for i in ids)

    row = np.array([1, 0, 2, 3, 0, 4])
    prompt = Prompt(row, np.arange(6) < 2)
    start = beginning([prompt], 3)
    assert start == 2 and beginning([], 0) == 0
    assert beginning([Prompt(row, np.ones(6, bool))], 0) == 6
    assert beginning([Prompt(row, np.array([False, True, True, True, True, True]))], 0) == 0
    assert to_text(row, Letters(), trim=True, prompt_length=start) == "a.bc"
