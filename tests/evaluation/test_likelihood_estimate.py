"""The likelihood estimate against what it must be: entropies, cross-entropies, and the reference's own figures."""

import functools
import pathlib

import jax
import numpy as np
import pytest
from models import reference_files
from oracles import toys
from toy_network import ExactNetwork, draw_batches, make_problem

from dfm_jax import flow
from dfm_jax.evaluation.likelihood import LikelihoodEstimator, estimate_likelihood

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
A, D = toys.TOYS["A"], toys.TOYS["D"]
# One-way uniform bounds with the exact posterior, nats per sequence (mathematics.md F(i)).
UNIFORM_GKL = {"A": 2.5809571234, "D": 3.5837436099}

CASES = [
    (A, "mask", "polynomial", 1.0, "posterior"),
    pytest.param(D, "mask", "cosine_md4", 1.0, "leave_one_out", marks=pytest.mark.slow),
    pytest.param(A, "uniform", "polynomial", 2.0, "leave_one_out", marks=pytest.mark.slow),
    (D, "uniform", "sine_squared", 1.0, "posterior"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("toy", "source", "scheduler", "exponent", "parametrization"), CASES)
def test_exact_posterior_gives_the_entropy(toy, source, scheduler, exponent, parametrization):
    problem = make_problem(
        flow.get_source(source, toy.vocab_size), scheduler, exponent=exponent, parametrization=parametrization
    )
    results = estimate_likelihood(
        None,
        problem,
        draw_batches(np.random.default_rng(1), toy.data, toy.q, 20_000, 8192),
        key=jax.random.key(5),
        time_points=32,
        network=ExactNetwork(problem, toy.data, toy.q),
    )
    assert len(results) == (3 if source == "mask" else 2)
    for name, result in results.items():
        one_way = source == "uniform" and name == "generalized_kl"
        expected = (UNIFORM_GKL[toy.name] if one_way else toy.entropy) / toy.length
        assert result.blocks == 20_000 and result.tokens == 20_000 * toy.length
        # Up to kappa = 1 - eps only, where it makes a difference: at most eps log(1/eps) and a little.
        slack = 0.0 if source == "mask" else 0.02
        assert -3 * result.stderr - slack < result.nats_per_token - expected < 3 * result.stderr
        if result.exact is not None:
            assert abs(result.exact[0] - expected) < 3 * result.exact[1]
        if name != "masked_count":
            assert np.isclose(result.curve.mean(), result.nats_per_token, rtol=1e-5)
            assert np.isclose(result.by_eps[result.eps], result.nats_per_token, rtol=1e-12)
    bound = results["generalized_kl"]
    assert (bound.exact is None) == (parametrization == "posterior")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_a_wrong_posterior_costs_its_divergence(source):
    """With the posterior of another law q', the tight bounds are the cross-entropy H(q, q')."""
    wrong = np.roll(A.q, 1)
    problem = make_problem(flow.get_source(source, 3), parametrization="leave_one_out")
    name = "masked_elbo" if source == "mask" else "time_reversal"
    batches = draw_batches(np.random.default_rng(2), A.data, A.q, 20_000, 20_000)
    network = ExactNetwork(problem, A.data, wrong)
    result = estimate_likelihood(
        None, problem, batches, key=jax.random.key(0), time_points=32, network=network, bounds=[name]
    )[name]
    expected = -(A.q * np.log(wrong)).sum() / 2
    assert expected > A.entropy / 2 + 0.1
    assert result.exact is not None and abs(result.exact[0] - expected) < 3 * result.exact[1]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["mask", "uniform"])
@pytest.mark.parametrize("exponent", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_reference_estimates_the_same(source, exponent):
    fixture = np.load(FIXTURES / "elbo.npz")
    problem = make_problem(flow.get_source(source, 37), exponent=float(exponent), suppress=False)
    estimator = LikelihoodEstimator(problem, time_points=64, bounds=("generalized_kl",))
    tokens = fixture[f"{source}_data"].astype(np.int32)
    batch = [(tokens, np.ones(len(tokens), np.float32))]
    repeats = [
        estimator(reference_files.model(source), batch, key=jax.random.key(seed))["generalized_kl"].nats_per_token
        for seed in range(24)
    ]
    # Near t = 1 the integrand has a heavy tail, so the spread of the fixture's 12 repeats is itself uncertain: where
    # ours says more, ours is taken for both.
    spread = np.std(repeats, ddof=1)
    combined = np.hypot(spread / 24**0.5, max(fixture[f"{source}_{exponent}_se"], spread / 12**0.5))
    assert abs(np.mean(repeats) - fixture[f"{source}_{exponent}_mean"]) < 3 * combined


@functools.cache
def tiny_estimator(batch: int = 0):
    problem = make_problem(flow.MaskSource(3), parametrization="leave_one_out")
    return LikelihoodEstimator(problem, 8, network=ExactNetwork(problem, A.data, A.q))


def test_the_standard_error_is_honest():
    estimates, errors = [], []
    for seed in range(50):
        batches = draw_batches(np.random.default_rng(seed), A.data, A.q, 400, 400)
        result = tiny_estimator()(None, batches, key=jax.random.key(seed))
        estimates.append([result[name].nats_per_token for name in ("generalized_kl", "masked_count")])
        errors.append([result[name].stderr for name in ("generalized_kl", "masked_count")])
    np.testing.assert_allclose(np.std(estimates, axis=0, ddof=1), np.mean(errors, axis=0), rtol=0.3)


def test_figures_do_not_depend_on_batches_or_on_a_mesh():
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    meshed = LikelihoodEstimator(tiny_estimator().problem, 8, network=tiny_estimator().network, mesh=mesh)
    runs = []
    for estimator, batch_size in ((tiny_estimator(), 400), (tiny_estimator(), 150), (meshed, 150)):
        batches = draw_batches(np.random.default_rng(0), A.data, A.q, 400, batch_size)
        runs.append(estimator(None, batches, key=jax.random.key(3), count_bytes=len))
    for other in runs[1:]:
        for name, result in runs[0].items():
            assert other[name].blocks == result.blocks == 400
            assert np.isclose(other[name].nats_per_token, result.nats_per_token, rtol=1e-6)
            assert np.isclose(other[name].stderr, result.stderr, rtol=1e-5)
    one = runs[0]["generalized_kl"]
    assert np.isclose(one.bits_per_byte, one.nats_per_token / np.log(2))
    assert np.isclose(one.perplexity, np.exp(one.nats_per_token))


def test_no_block_is_an_error():
    with pytest.raises(ValueError, match="at least one block"):
        tiny_estimator()(None, [], key=jax.random.key(0))
