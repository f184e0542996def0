"""The mixture path: its law, its ends, and its velocity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow

EXACT_ENDS = [name for name in flow.SCHEDULERS if name not in ("log_linear", "geometric")]


def draw(scheduler: flow.Scheduler, t: jax.Array, batch: int = 4, length: int = 6) -> flow.PathSample:
    x_0 = jax.random.randint(jax.random.key(0), (batch, length), 0, 9, jnp.int32)
    x_1 = 10 + jax.random.randint(jax.random.key(1), (batch, length), 0, 9, jnp.int32)
    return flow.MixtureDiscreteProbPath(scheduler).sample(jax.random.key(2), x_0, x_1, t)


@pytest.mark.parametrize("name", EXACT_ENDS)
def test_the_ends_are_source_and_data_surely(name):
    scheduler = flow.get_scheduler(name, vocab_size=9)
    start, end = draw(scheduler, jnp.zeros(4)), draw(scheduler, jnp.ones(4))
    np.testing.assert_array_equal(start.x_t, start.x_0)
    np.testing.assert_array_equal(end.x_t, end.x_1)


def test_a_sample_has_the_tokens_shape_and_takes_each_from_one_of_the_two():
    t = jnp.array([0.1, 0.5, 0.7, 0.9])
    sample = draw(flow.CondOTScheduler(), t)
    assert sample.x_t.shape == (4, 6) and sample.x_t.dtype == jnp.int32
    assert ((sample.x_t == sample.x_0) | (sample.x_t == sample.x_1)).all()
    np.testing.assert_array_equal(sample.t, t)


@pytest.mark.parametrize("name", ["linear", "cosine_md4"])
def test_tokens_are_kept_with_probability_kappa(name):
    scheduler, length = flow.get_scheduler(name), 50_000
    t = jnp.array([0.01, 0.3, 0.8, 0.999])
    sample = draw(scheduler, t, length=length)
    kappa = np.asarray(scheduler(t).alpha_t)
    kept = np.asarray((sample.x_t == sample.x_1).mean(axis=-1))
    assert (np.abs(kept - kappa) < 5 * np.sqrt(kappa * (1 - kappa) / length) + 1e-7).all()


@pytest.mark.slow
def test_rare_events_keep_their_probability():
    """P(source) = 2^-22 over 2^26 tokens: 16 expected; a float32 uniform on a grid of 2^-23 is a coin too coarse."""
    r = jnp.full((1,), 2.0**-22)
    x_0 = jnp.zeros((1, 2**24), jnp.int8)
    path, time = flow.MixtureDiscreteProbPath(flow.CondOTScheduler()), flow.Time(1 - r, r)
    count = sum(int((path.sample(jax.random.key(k), x_0, x_0 + jnp.int8(1), time).x_t == 0).sum()) for k in range(4))
    assert 4 <= count <= 32


def test_one_key_per_row_makes_rows_independent_of_the_batch():
    path, keys = flow.MixtureDiscreteProbPath(flow.CondOTScheduler()), jax.random.split(jax.random.key(5), 4)
    x_0, x_1 = jnp.zeros((4, 32), jnp.int32), jnp.ones((4, 32), jnp.int32)
    t = jnp.array([0.2, 0.4, 0.6, 0.8])
    whole = path.sample(keys, x_0, x_1, t).x_t
    part = path.sample(keys[1:3], x_0[1:3], x_1[1:3], t[1:3]).x_t
    np.testing.assert_array_equal(whole[1:3], part)


def test_velocity_is_the_jump_rate_times_the_change_of_law():
    scheduler = flow.PolynomialConvexScheduler(2.0)
    path, t = flow.MixtureDiscreteProbPath(scheduler), jnp.array([0.3, 0.6])
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    x_t = jnp.array([[0, 1, 2], [3, 4, 0]])
    velocity = path.posterior_to_velocity(logits, x_t, t)
    post = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    rate = 2 * np.asarray(t) / (1 - np.asarray(t) ** 2)
    np.testing.assert_allclose(
        velocity, rate[:, None, None] * (post - np.eye(5)[np.asarray(x_t)]), rtol=2e-5, atol=1e-6
    )
    np.testing.assert_allclose(velocity.sum(axis=-1), 0, atol=2e-6)
    forward = flow.ForwardVelocity()(logits, x_t, t, path, flow.UniformSource(5))
    np.testing.assert_allclose(forward, velocity, rtol=1e-5, atol=1e-5)


def test_a_settled_position_does_not_move_at_the_end():
    path = flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
    logits = jnp.where(jnp.arange(3) == 1, 0.0, -jnp.inf)[None, None, :]
    np.testing.assert_array_equal(path.posterior_to_velocity(logits, jnp.array([[1]]), 1.0), np.zeros((1, 1, 3)))


@pytest.mark.parametrize(
    "call",
    [
        lambda path: flow.MixtureDiscreteProbPath("linear"),
        lambda path: path.sample(jax.random.key(0), jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 4), jnp.int32), 0.5),
        lambda path: path.sample(jax.random.key(0), jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 3), jnp.int32), 1.5),
        lambda path: path.posterior_to_velocity(jnp.zeros((2, 3, 5)), jnp.zeros((2, 4), jnp.int32), 0.5),
        lambda path: flow.divergence_free(-1.0),
        lambda path: flow.CorrectorVelocity(1.0, -0.5),
        lambda path: flow.DetailedBalanceVelocity(-1.0),
        lambda path: flow.bound_of(flow.divergence_free(0.5), path, flow.UniformSource(5)),
        lambda path: flow.bound_of(flow.DetailedBalanceVelocity(1.0), path, flow.UniformSource(5)),
    ],
)
def test_bad_input_says_what_is_accepted(call):
    with pytest.raises(ValueError, match="expected"):
        call(flow.MixtureDiscreteProbPath(flow.CondOTScheduler()))


def test_velocities_that_bound_a_likelihood():
    path, source = flow.MixtureDiscreteProbPath(flow.CondOTScheduler()), flow.UniformSource(5)
    assert isinstance(flow.bound_of(flow.ForwardVelocity(), path, source), flow.GeneralizedKL)
    assert isinstance(flow.bound_of(flow.TimeReversalVelocity(), path, source), flow.TimeReversal)
