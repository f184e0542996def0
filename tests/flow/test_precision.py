"""float32 losses at a vocabulary of 50257 against float64 definitions (mathematics.md D.3 d), and finite gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow

V = 50257
SIGMAS = np.array([0.99, 0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-6])


def case(peak: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (7, 4, V) float32 and tokens; columns 0, 1 are kept, columns 2, 3 changed. `peak` favours x_1."""
    rng = np.random.default_rng(0)
    x_1 = rng.integers(0, V, (len(SIGMAS), 4)).astype(np.int32)
    x_t = np.where(np.arange(4) < 2, x_1, (x_1 + 7) % V).astype(np.int32)
    logits = rng.normal(size=(*x_1.shape, V)).astype(np.float32) * 3
    np.put_along_axis(logits, x_1[..., None], np.float32(peak), axis=-1)
    return logits, x_1, x_t


def softmax64(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return np.exp(shifted) / np.exp(shifted).sum(axis=-1, keepdims=True)


def pick(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, ids[..., None], axis=-1)[..., 0]


def posterior64(xhat: np.ndarray, x_t: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Bayes: C(z | v) xhat(v), normalised over v, for the uniform source."""
    weights = xhat * (sigma[:, None, None] / V)
    here = pick(xhat, x_t) * (1 - sigma[:, None] + sigma[:, None] / V)
    np.put_along_axis(weights, x_t[..., None], here[..., None], axis=-1)
    return weights / weights.sum(axis=-1, keepdims=True)


def gkl64(post: np.ndarray, x_1: np.ndarray, x_t: np.ndarray) -> np.ndarray:
    """GKL / lambda by mathematics.md D.2, with 1 - post(z) as the sum of the others."""
    others = post.copy()
    np.put_along_axis(others, x_t[..., None], 0.0, axis=-1)
    return others.sum(axis=-1) - (x_t != x_1) * (1 + np.log(pick(post, x_1)))


def tr64(xhat: np.ndarray, x_1: np.ndarray, x_t: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """TR / d kappa by mathematics.md D.2: (p(z) / (kappa C(z))) [KL + Itakura-Saito], every law written out."""
    sigma = sigma[:, None]
    kappa = 1 - sigma
    model = kappa[..., None] * xhat + sigma[..., None] / V
    c_1 = kappa + sigma / V
    kl = c_1 * np.log(c_1 / pick(model, x_1))
    rest = np.log((sigma[..., None] / V) / model)
    np.put_along_axis(rest, x_1[..., None], 0.0, axis=-1)
    kl += (sigma / V) * rest.sum(axis=-1)
    c_z = np.where(x_t == x_1, c_1, sigma / V)
    ratio = c_z / pick(model, x_t)
    return (1 / V) / (kappa * c_z) * (kl + ratio - 1 - np.log(ratio))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("peak", [0.0, 12.0, 30.0])
def test_leave_one_out_losses_in_float32(peak):
    logits, x_1, x_t = case(peak)
    path, source = flow.MixtureDiscreteProbPath(flow.CondOTScheduler()), flow.UniformSource(V)
    t = flow.Time(jnp.asarray(1 - SIGMAS, jnp.float32), jnp.asarray(SIGMAS, jnp.float32))
    xhat = softmax64(logits)
    # loss * weight under sigma = (1-u)^2: the weight on loss / lambda is 2 / sqrt(sigma), on loss / dk sigma times it.
    gkl_weight, tr_weight = 2 / np.sqrt(SIGMAS)[:, None], 2 * np.sqrt(SIGMAS)[:, None]
    objective = flow.GeneralizedKL(path, source, "leave_one_out")
    gkl = np.asarray(flow.loss_from_logits(objective, jnp.asarray(logits), x_1, x_t, t), np.float64)
    exact = gkl64(posterior64(xhat, x_t, SIGMAS), x_1, x_t) * gkl_weight
    # A network that is sure of x_1 gives log xhat(x_1) to 6e-8 in float32, and the weight multiplies that.
    atol = 2e-7 * (gkl_weight if peak > 20 else 1)
    assert (np.abs(gkl * SIGMAS[:, None] * gkl_weight - exact) <= atol + 1e-6 * np.abs(exact)).all()
    tr = np.asarray(flow.time_reversal_bound(jnp.asarray(logits), x_1, x_t, t, path, source), np.float64)
    exact = tr64(xhat, x_1, x_t, SIGMAS) * tr_weight
    atol = 2e-7 * gkl_weight if peak > 20 else 5e-6
    assert (np.abs(tr * tr_weight - exact) <= atol + 2e-6 * np.abs(exact)).all()
    cross = flow.CrossEntropy(path, source, "leave_one_out")
    ce = np.asarray(flow.loss_from_logits(cross, jnp.asarray(logits), x_1, x_t, t), np.float64)
    np.testing.assert_allclose(ce, -np.log(pick(posterior64(xhat, x_t, SIGMAS), x_1)), rtol=1e-6, atol=2e-7)


def test_float32_times_keep_the_end_of_the_path():
    """1 - t formed in float32 loses the jump rate near t = 1; the carried r does not."""
    r = np.array([1e-3, 1e-5, 1e-7, 1e-9])
    time = flow.Time(jnp.asarray(1 - r, jnp.float32), jnp.asarray(r, jnp.float32))
    for name in flow.SCHEDULERS:
        scheduler = flow.get_scheduler(name, vocab_size=V)
        exact = scheduler.float64(1 - r, r)
        np.testing.assert_allclose(scheduler.jump_rate(time), exact.jump_rate, rtol=2e-6, err_msg=name)
        np.testing.assert_allclose(scheduler(time).sigma_t, exact.sigma, rtol=2e-6, err_msg=name)


SCHEDULERS = {
    **{name: flow.get_scheduler(name, vocab_size=5) for name in flow.SCHEDULERS},
    "t^2": flow.PolynomialConvexScheduler(2),
    "t^3.5": flow.PolynomialConvexScheduler(3.5),
    "r^2": flow.OneMinusPowerScheduler(2),
    "r^3": flow.OneMinusPowerScheduler(3),
}
SOURCES = {
    "mask": flow.MaskSource(5),
    "uniform": flow.UniformSource(5),
    "categorical": flow.CategoricalSource([0.5, 0.25, 0.25, 0.0, 0.0]),
}


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("source_name", SOURCES)
@pytest.mark.parametrize("scheduler_name", SCHEDULERS)
def test_gradients_are_finite(scheduler_name, source_name):
    source, path = SOURCES[source_name], flow.MixtureDiscreteProbPath(SCHEDULERS[scheduler_name])
    t = jnp.array([0.0, 1e-6, 0.5, 1 - 1e-6, 1 - 1e-3, 1.0])
    x_1 = jnp.asarray(np.random.default_rng(1).integers(0, 5, (6, 4)), jnp.int32)
    x_0 = source.sample(jax.random.key(0), x_1.shape)
    x_t = path.sample(jax.random.key(1), x_0, x_1, t).x_t
    x_t = jnp.where((t > 0)[:, None] & (jnp.arange(4) == 0)[None, :], x_1, x_t)
    logits = jax.random.normal(jax.random.key(2), (*x_1.shape, source.num_states)) * 4
    for parametrization in ("posterior", "leave_one_out"):
        names = ("cross_entropy", "generalized_kl", "time_reversal") + ("masked_elbo",) * (source_name == "mask")
        for name in names:
            objective = flow.get_objective(name, path=path, source=source, parametrization=parametrization)
            rows = slice(None) if parametrization == "leave_one_out" else slice(None, 5)

            def total(logits: jax.Array, objective=objective, rows=rows) -> tuple[jax.Array, jax.Array]:
                loss = flow.loss_from_logits(objective, logits, x_1, x_t, t)
                return loss[rows].sum(), loss

            (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(logits)
            assert jnp.isfinite(loss[rows]).all(), (name, parametrization, loss)
            assert not jnp.isnan(loss).any()
            assert jnp.isfinite(gradient).all(), (name, parametrization)


def test_an_unsure_posterior_network_costs_infinity_at_the_end_without_nan():
    path, x_1 = flow.MixtureDiscreteProbPath(flow.CondOTScheduler()), jnp.array([[0, 1]])
    logits = jnp.array([[[0.0, 1.0, 2.0], [-jnp.inf, 0.0, -jnp.inf]]])
    loss, gradient = jax.value_and_grad(
        lambda x: flow.generalized_kl(x, x_1, x_1, jnp.ones(1), path)[0, 0], has_aux=False
    )(logits)
    assert loss == jnp.inf and not jnp.isnan(gradient).any()
    assert flow.generalized_kl(logits, x_1, x_1, jnp.ones(1), path)[0, 1] == 0


@pytest.mark.parametrize("source_name", ["mask", "uniform"])
def test_gradients_at_the_full_vocabulary_match_float64(source_name):
    logits, x_1, x_t = case(5.0)
    source = flow.get_source(source_name, V)
    if source_name == "mask":
        logits = np.concatenate([logits, np.ones_like(logits[..., :1])], axis=-1)
        x_t = np.where(np.arange(4) < 2, x_1, V).astype(np.int32)
    path = flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
    objective = flow.get_objective("time_reversal", path=path, source=source, parametrization="leave_one_out")

    def gradient(dtype: type) -> np.ndarray:
        t = flow.Time(jnp.asarray(1 - SIGMAS, dtype), jnp.asarray(SIGMAS, dtype))
        weight = jnp.asarray(SIGMAS, dtype)[:, None]
        loss = lambda x: (weight * flow.loss_from_logits(objective, x, x_1, x_t, t)).sum()  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(logits, dtype)), np.float64)

    rounded = gradient(np.float32)
    with jax.enable_x64(True):
        exact = gradient(np.float64)
    np.testing.assert_allclose(rounded, exact, rtol=1e-4, atol=2e-6)
