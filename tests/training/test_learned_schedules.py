"""Learned exponents (GenMD4): the REINFORCE gradient is the derivative of the expected loss, by enumeration."""

import itertools

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import flow
from dfm_jax.models import head
from dfm_jax.models.transformer import Transformer, TransformerConfig
from dfm_jax.problem import Problem
from dfm_jax.training import learned_schedules
from dfm_jax.training.step import NoisyBatch, StepSettings

V, LENGTH, TIME = 3, 2, 0.4


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


def test_gradient_is_that_of_the_expected_loss():
    """Over all pairs of masks of one x_1, weighted by their probability under q_w."""
    model, p = network(), problem()
    x_1 = jnp.asarray([[2, 0]], jnp.int32)
    masks = np.array(list(itertools.product([False, True], repeat=LENGTH)))

    def batch(x_t: jax.Array, weight: jax.Array) -> NoisyBatch:
        rows = len(x_t)
        time = flow.Time(jnp.full(rows, TIME), jnp.full(rows, 1 - TIME))
        tokens = jnp.tile(x_1, (rows, 1))
        return NoisyBatch(tokens, x_t, jnp.zeros(x_t.shape, bool), time, weight, None)

    def losses(model, x_t):
        here, rows = p.given(model), batch(x_t, jnp.ones(len(x_t)))
        query = here.objective.query(rows.x_1, x_t, rows.time)
        answer = head.answer(model, model(x_t, rows.time.t), query)
        probability = here.path.log_probability(x_t, rows.x_1, rows.time).sum(-1)
        return here.objective(answer, rows.x_1, x_t, rows.time).sum(-1), jnp.exp(probability)

    states = jnp.where(masks, V, x_1)

    def expected(model):
        loss, probability = losses(model, states)
        return (loss * probability).sum()

    _, q = jax.jit(losses)(model, states)
    np.testing.assert_allclose(q.sum(), 1.0, rtol=1e-6)
    first, second = (np.array(i) for i in zip(*itertools.product(range(len(masks)), repeat=2), strict=True))
    pairs = batch(jnp.concatenate([states[first], states[second]]), jnp.tile(q[first] * q[second], 2))

    def surrogate(model):
        return learned_schedules.loss_sum(model, pairs, p, StepSettings(seed=0), None) / 2

    exact, gradient = jax.jit(jax.grad(expected))(model), jax.jit(jax.grad(surrogate))(model)
    assert np.abs(exact.log_exponents[...]).max() > 0.05
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(jax.jit(expected)(model), jax.jit(surrogate)(model), rtol=1e-5)


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
