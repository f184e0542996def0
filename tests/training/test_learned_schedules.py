"""Learned exponents (GenMD4): the REINFORCE gradient is the derivative of the expected loss, by enumeration."""

import itertools

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow
from dfm_jax.experiment.problem import Problem
from dfm_jax.models import head
from dfm_jax.models.transformer import Transformer, TransformerConfig
from dfm_jax.training import learned_schedules
from dfm_jax.training.corruption import NoisyBatch
from dfm_jax.training.step import split_rows

V, LENGTH, TIME = 3, 2, 0.4
X_1 = (2, 0)


def problem() -> Problem:
    source = flow.MaskSource(V)
    path = flow.GenMD4ProbPath(flow.CondOTScheduler(), V, learned=True)
    return Problem(
        path=path,
        source=source,
        objective=flow.get_objective("masked_elbo", path=path, source=source, parametrization="leave_one_out"),
        parametrization="leave_one_out",
        time_input="t",
        time_epsilon=0.0,
        time_law="uniform",
        time_sampling="iid",
        coupling=flow.get_coupling("independent"),
    )


def network() -> Transformer:
    config = TransformerConfig(
        V + 1, hidden_size=8, cond_dim=4, length=LENGTH, n_blocks=1, n_heads=1, dropout=0.0, token_exponents=True
    )
    model = Transformer(config, rngs=nnx.Rngs(0))
    leaves, tree = jax.tree.flatten(model)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves])


def losses(model: Transformer, rows: NoisyBatch) -> tuple[jax.Array, jax.Array]:
    """The loss of each row, and the probability of its x_t under q_w."""
    here = problem().given(model)
    answer = head.answer(model, model(rows.x_t, rows.time.t), here.objective.query(rows.x_1, rows.x_t, rows.time))
    assert isinstance(here.path, flow.GenMD4ProbPath)
    log_q = here.path.log_probability(rows.x_t, rows.x_1, rows.time).sum(-1)
    return here.objective(answer, rows.x_1, rows.x_t, rows.time).sum(-1), jnp.exp(log_q)


def batch(x_t: jax.Array, weight: jax.Array) -> NoisyBatch:
    """Rows of X_1 at one time."""
    rows = len(x_t)
    time = flow.Time(jnp.full(rows, TIME), jnp.full(rows, 1 - TIME))
    tokens = jnp.tile(jnp.asarray([X_1], jnp.int32), (rows, 1))
    return NoisyBatch(tokens, x_t, jnp.zeros(x_t.shape, bool), time, weight, None)


def all_pairs() -> tuple[jax.Array, jax.Array, np.ndarray, np.ndarray]:
    """The states (4, L) of X_1 with any masks, their probabilities, and all pairs of them as two lists of numbers."""
    masks = np.array(list(itertools.product([False, True], repeat=LENGTH)))
    states = jnp.where(masks, V, jnp.asarray([X_1]))
    _, q = jax.jit(losses)(network(), batch(states, jnp.ones(len(states))))
    first, second = (np.array(i) for i in zip(*itertools.product(range(len(masks)), repeat=2), strict=True))
    return states, q, first, second


def without_the_mean(gradient: np.ndarray, model: Transformer) -> np.ndarray:
    """A gradient in the parameters of log w, less the part of that in log w along its mean over the tokens of X_1."""
    slope = np.diag(jax.jacobian(lambda m: jnp.log(m.exponents()))(model).log_exponents[...])
    in_log_w = gradient / slope
    return slope * (in_log_w - np.bincount(X_1, minlength=V) / LENGTH * in_log_w.sum())


def split_exponents(gradient: Transformer) -> tuple[np.ndarray, list[jax.Array]]:
    """The gradient in log w, and those in all other parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    others = [leaf for path, leaf in leaves if "log_exponents" not in jax.tree_util.keystr(path)]
    assert len(others) == len(leaves) - 1 and gradient.log_exponents is not None
    return np.asarray(gradient.log_exponents[...]), others


def of_pairs(model: Transformer) -> tuple[jax.Array, jax.Array]:
    """The loss to differentiate of each pair of samples (P,), beside one other pair, and the pairs' probabilities."""
    states, q, first, second = all_pairs()

    def loss(i, j):
        # The other pair, both masked at 0, gives its mean to the guesses and next to nothing to the sum.
        rows = batch(jnp.stack([states[i], states[2], states[j], states[2]]), jnp.array([1.0, 1e-12, 1.0, 1e-12]))
        features = model(rows.x_t, problem().network_time(rows.time))
        return learned_schedules.loss_sum(model, features, rows, problem(), mesh=None, head=None) / 2

    return jax.vmap(loss)(first, second), q[first] * q[second]


@pytest.mark.slow
def test_gradient_is_that_of_the_expected_loss():
    """Over all pairs of masks of one x_1, weighted by their probability under q_w."""
    model = network()
    states, q, *_ = all_pairs()
    np.testing.assert_allclose(q.sum(), 1.0, rtol=1e-6)

    def expected(model):
        loss, probability = losses(model, batch(states, jnp.ones(len(states))))
        return (loss * probability).sum()

    def surrogate(model):
        loss, probability = of_pairs(model)
        return (loss * probability).sum()

    value, exact = jax.jit(jax.value_and_grad(expected))(model)
    found_value, gradient = jax.jit(jax.value_and_grad(surrogate))(model)
    (in_w, others), (found, found_others) = split_exponents(exact), split_exponents(gradient)
    wanted = without_the_mean(in_w, model)
    assert np.abs(wanted).max() > 0.02
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-6)
    for a, b in zip(others, found_others, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(value, found_value, rtol=1e-5)


def whole_rows(nats, masked, q, scale):
    """The other sample's loss of the row as the one baseline of all its scores."""
    row = nats.sum(-1, keepdims=True)
    return row - jnp.roll(row, len(row) // 2, axis=0) + 0 * nats, 0 * nats


@pytest.mark.slow
def test_baselines_of_each_position_leave_less_variance(monkeypatch):
    """Exactly, over all pairs; both gradients have one mean."""
    model = network()

    def moments():
        # By the exponents alone, of one pair after the other: (P, V).
        graph, exponents, rest = nnx.split(model, lambda path, _: "log_exponents" in path, ...)

        def loss(exponents):
            return of_pairs(nnx.merge(graph, exponents, rest))

        gradient, p = jax.jit(lambda e: (jax.jacrev(lambda e: loss(e)[0])(e), loss(e)[1]))(exponents)
        (gradient,) = jax.tree.leaves(gradient)
        gradient, p = np.asarray(gradient), np.asarray(p)[:, None]
        mean = (p * gradient).sum(0)
        return mean, float((p * (gradient - mean) ** 2).sum())

    mean, variance = moments()
    monkeypatch.setattr(learned_schedules, "coefficients", whole_rows)
    mean_before, before = moments()
    np.testing.assert_allclose(mean, mean_before, rtol=2e-4, atol=2e-6)
    assert variance < 0.6 * before, (variance, before)


@pytest.mark.slow
def test_second_samples_are_pairs_with_noise_of_their_own():
    p = problem()
    tokens = jnp.tile(jnp.arange(V, dtype=jnp.int32), (64, 5))
    time = flow.Time(jnp.linspace(0.1, 0.9, 64), jnp.linspace(0.9, 0.1, 64))
    x_t = jnp.full(tokens.shape, V)
    kept = jnp.zeros(tokens.shape, bool).at[:, 0].set(True)
    one = NoisyBatch(tokens, x_t, kept, time, jnp.ones(64), jax.random.split(jax.random.key(1), 64))
    two = learned_schedules.second_sample(one, jax.random.key(0), p)
    assert two.x_t.shape == (128, 3 * 5)
    np.testing.assert_array_equal(two.x_1[:64], two.x_1[64:])
    np.testing.assert_array_equal(two.x_t[:64], x_t)
    np.testing.assert_array_equal(two.x_t[64:, 0], tokens[:, 0])
    share = float((two.x_t[64:, 1:] == V).mean())
    assert abs(share - 0.5) < 0.06
    parts = split_rows(two, 4, None)  # as gradient accumulation does: each part has whole pairs
    assert parts.time.t.shape == (4, 32)
    np.testing.assert_array_equal(parts.time.t[:, :16], parts.time.t[:, 16:])


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("parameters", "exponents"),
    [((0.0, 0.0, 0.0), (1, 1, 1)), ((-1e3, -1e3, -1e3), (1, 1, 1)), ((-1e3, 0.0, 1e3), (1, 8**0.5, 8))],
)
def test_the_slowest_token_keeps_the_clock(parameters, exponents):
    """Exponents from 1 to 8, though Adam walks the parameter of a token that never occurs as long as a run lasts.

    At squared times, sigma = (1 - u)^2, a token's share of the loss is 2 w log(1/p) / (1 - u) where it is masked, with
    probability (1 - u)^(2 w): its second moment is that of (1 - u)^(2 w - 2), infinite for w <= 1/2.
    """
    model = network()
    model.log_exponents = nnx.Param(jnp.asarray(parameters))
    np.testing.assert_allclose(model.exponents(), exponents, rtol=1e-6)
