"""The functions of dense logits: on every path, for tokens of any integer type, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow

V = 4
PATH = flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
MASK, UNIFORM = flow.MaskSource(V), flow.UniformSource(V)
RAMP = flow.CategoricalSource(np.arange(1, V + 1) / 10)
THREE_TERM = flow.ThreeTermProbPath(flow.CondOTScheduler(), V, 0.5)
GENERAL = {
    "three_term": THREE_TERM,
    "metric": flow.MetricProbPath(flow.CondOTScheduler(), np.eye(V)),
    "kinetic_optimal": flow.KineticOptimalProbPath(flow.CondOTScheduler(), RAMP),
    "genmd4": flow.GenMD4ProbPath(flow.CondOTScheduler(), V, np.linspace(0.5, 2, V)),
}
T = jnp.array([0.2, 0.7])
X_1, X_T = jnp.array([[0, 1, 2], [3, 2, 1]], jnp.int32), jnp.array([[0, 3, 2], [1, 2, 0]], jnp.int32)


def logits_for(source: flow.Source) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (2, 3, source.num_states))


def test_to_posterior_on_the_three_term_path_is_bayes():
    """A token that is not the mask may be noise there: it is no proof of x_1, as it is on the mixture."""
    logits, x_t = logits_for(MASK), X_T.at[0, 0].set(V)
    xhat = np.array(jax.nn.softmax(logits[..., :V], axis=-1), np.float64)
    kappa = np.asarray(T, np.float64)[:, None, None]
    k_1, k_2, k_3 = THREE_TERM.coefficients(kappa, 1 - kappa)
    z = np.asarray(x_t)[..., None]
    weights = xhat * np.where(z == V, k_3, k_1 * (np.arange(V) == z) + k_2 / V)
    expected = np.pad(weights / weights.sum(axis=-1, keepdims=True), ((0, 0), (0, 0), (0, 1)))
    post = jax.nn.softmax(flow.to_posterior(logits, x_t, T, THREE_TERM, MASK), axis=-1)
    np.testing.assert_allclose(post, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", GENERAL)
def test_losses_and_velocities_of_other_paths_are_their_own(name):
    path = GENERAL[name]
    source = path.own_source()
    logits, x_t = logits_for(source), X_T
    own = flow.get_objective("generalized_kl", path=path, source=source)
    expected = flow.loss_from_logits(own, logits, X_1, x_t, T)
    np.testing.assert_array_equal(flow.generalized_kl(logits, X_1, x_t, T, path), expected)
    velocity = path.posterior_to_velocity(logits, x_t, T)
    np.testing.assert_allclose(velocity.sum(axis=-1), 0, atol=1e-4)
    np.testing.assert_array_equal(velocity, path.own_velocity()(logits, x_t, T, path, source))
    if name != "three_term":
        with pytest.raises(ValueError, match="expected"):
            flow.time_reversal_bound(logits, X_1, x_t, T, path, source)
    if name == "metric":
        with pytest.raises(ValueError, match="expected posterior"):
            flow.to_posterior(logits, x_t, T, path, source)


@pytest.mark.slow
def test_tokens_of_any_integer_type_give_the_same():
    """numpy's int64 is what np.array([[0, 1]]) is; with x64, int64 beside the sources' int32."""
    logits = logits_for(UNIFORM)

    def numbers(x_1, x_t):
        yield PATH.sample(jax.random.key(1), x_t, x_1, T).x_t
        yield flow.cross_entropy(logits, x_1)
        yield flow.generalized_kl(logits, x_1, x_t, T, PATH)
        yield flow.time_reversal_bound(logits, x_1, x_t, T, PATH, UNIFORM)
        yield flow.to_posterior(logits, x_t, T, PATH, UNIFORM)
        yield flow.masked_elbo(logits_for(MASK), x_1, x_t, T, PATH, MASK)

    expected = [np.asarray(x) for x in numbers(X_1, X_T)]
    for one, two in (
        (np.asarray(X_1, np.int64), np.asarray(X_T, np.int64)),
        (X_1.astype(jnp.uint8), X_T.astype(jnp.int8)),
        (np.asarray(X_1, np.int64), X_T),
    ):
        for x, same in zip(numbers(one, two), expected, strict=True):
            np.testing.assert_array_equal(x, same)
    with jax.enable_x64(True):
        wide = np.asarray(X_1, np.int64)
        assert PATH.sample(jax.random.key(1), UNIFORM.sample(jax.random.key(0), (2, 3)), wide, T).x_t.shape == (2, 3)
        assert flow.time_reversal_bound(logits, wide, X_T, T, PATH, UNIFORM).dtype == jnp.float32


@pytest.mark.parametrize(
    "call",
    [
        lambda: PATH.sample(jax.random.key(0), X_T.astype(jnp.float32), X_1, T),
        lambda: PATH.sample(jax.random.key(0), X_T, X_1.astype(jnp.float32), T),
        lambda: PATH.sample(jax.random.key(0), X_T, X_1, jnp.zeros(3)),
        lambda: THREE_TERM.sample(jax.random.key(0), X_T[:1], X_1, T),
        lambda: THREE_TERM.sample(jax.random.key(0), X_T, X_1, jnp.zeros(3)),
        lambda: PATH.posterior_to_velocity(logits_for(UNIFORM), X_T.astype(jnp.float32), T),
        lambda: PATH.posterior_to_velocity(logits_for(UNIFORM), X_T, jnp.zeros(3)),
        lambda: THREE_TERM.posterior_to_velocity(logits_for(UNIFORM), X_T, T),
        lambda: flow.cross_entropy(logits_for(UNIFORM), X_1.astype(jnp.float32)),
        lambda: flow.masked_elbo(logits_for(MASK), X_1, X_T[:1], T, PATH, MASK),
        lambda: flow.generalized_kl(logits_for(UNIFORM), X_1, X_T.astype(jnp.float32), T, PATH),
        lambda: flow.generalized_kl(logits_for(UNIFORM), X_1, X_T, jnp.zeros(3), PATH),
        lambda: flow.to_posterior(logits_for(UNIFORM), X_T.astype(jnp.float32), T, PATH, UNIFORM),
        lambda: flow.to_posterior(logits_for(UNIFORM), X_T, jnp.zeros(3), PATH, UNIFORM),
    ],
)
def test_bad_input_says_what_is_accepted(call):
    with pytest.raises(ValueError, match="expected"):
        call()
