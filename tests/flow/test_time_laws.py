"""Training times: every law and method estimates the same integral, the better ones with less noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow

SCHEDULERS = [None, flow.SineScheduler(), flow.PolynomialConvexScheduler(2.0), flow.GeometricScheduler()]


@pytest.mark.default_cases(6)
@pytest.mark.parametrize("epsilon", [0.0, 1e-2])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("law", ["uniform", "squared"])
def test_weighted_means_are_the_integral(law, scheduler, epsilon):
    time, weight = flow.sample_times(
        jax.random.key(0), 20_000, law=law, method="stratified", epsilon=epsilon, scheduler=scheduler
    )
    t, w = np.asarray(time.t, np.float64), np.asarray(weight, np.float64)
    assert time.t.dtype == weight.dtype == jnp.float32
    assert (t >= 0).all() and t.max() <= 1 - epsilon + 1e-7
    np.testing.assert_allclose(time.t + time.r, 1, atol=2e-6)
    end = 1 - epsilon
    path = scheduler or flow.CondOTScheduler()
    start_kappa, end_kappa = path.float64(0.0).kappa, path.float64(end).kappa
    loss = path.float64(t).d_kappa * np.cos(path.float64(t).kappa)  # a loss that is finite per d kappa
    assert (w * loss).mean() == pytest.approx((np.sin(end_kappa) - np.sin(start_kappa)) / end, rel=1e-3)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("method", ["stratified", "systematic"])
@pytest.mark.parametrize("batch", [1, 7, 49, 98, 196])
def test_each_stratum_of_the_global_batch_is_visited_once(method, batch):
    u, left = flow.unit_samples(jax.random.key(batch), batch, method)
    assert u.shape == left.shape == (batch,)
    np.testing.assert_array_equal(np.sort(np.floor(np.asarray(u) * batch * (1 - 1e-6))), np.arange(batch))
    np.testing.assert_allclose(u + left, 1, atol=2e-7)
    if method == "systematic" and batch > 1:
        np.testing.assert_allclose(np.diff(np.sort(u)), 1 / batch, atol=2e-7)


def test_antithetic_times_come_in_pairs():
    u, _ = flow.unit_samples(jax.random.key(0), 6, "antithetic")
    np.testing.assert_allclose(u[:3] + u[3:], 1, atol=2e-7)
    assert flow.unit_samples(jax.random.key(0), 7, "antithetic")[0].shape == (7,)


def test_low_discrepancy_lowers_the_variance_of_the_time_part():
    means = {}
    for method in ("iid", "antithetic", "systematic", "stratified"):
        keys = jax.random.split(jax.random.key(1), 400)
        u = jax.vmap(lambda k, method=method: flow.unit_samples(k, 32, method)[0])(keys)
        means[method] = float(jnp.var((u**2).mean(axis=-1)))
    assert means["stratified"] < 0.01 * means["iid"]
    assert means["antithetic"] < 0.2 * means["iid"] and means["systematic"] < 0.05 * means["iid"]


def test_the_squared_law_has_sigma_of_the_scheduler():
    scheduler = flow.PolynomialConvexScheduler(2.0)
    time, weight = flow.sample_times(jax.random.key(0), 4096, law="squared", method="stratified", scheduler=scheduler)
    root = np.sort(np.sqrt(np.asarray(scheduler(time).sigma_t, np.float64)))
    np.testing.assert_allclose(root, (np.arange(4096) + 0.5) / 4096, atol=2 / 4096)
    expected = 2 * np.sqrt(np.asarray(scheduler(time).sigma_t)) / np.asarray(scheduler(time).d_alpha_t)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    assert float(scheduler.jump_rate(time).max()) < jnp.inf


@pytest.mark.parametrize("bad", [{"law": "cosine"}, {"method": "sobol"}, {"epsilon": 1.0}, {"epsilon": -0.1}])
def test_bad_input_says_what_is_accepted(bad):
    with pytest.raises(ValueError, match="expected"):
        flow.sample_times(jax.random.key(0), 4, **bad)
