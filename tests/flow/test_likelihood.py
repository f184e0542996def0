"""Where a bound is evaluated: the points of the estimator, and which answers of the head can be shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow
from dfm_jax.evaluation import points as likelihood

KEYS = jax.random.split(jax.random.key(0), 500)


def test_stratification_is_as_good_after_2000_batches():
    n, eps = 64, 1e-3
    draw = jax.jit(lambda keys: likelihood.kappa_points(keys, n, sigma=(1.0, eps)).linear.t)
    gaps, firsts = [], []
    for batch in range(2000):
        k = np.sort(np.asarray(draw(jax.random.split(jax.random.key(batch), 2)), np.float64), axis=0)
        inner = np.diff(k, axis=0).max()
        gaps.append(max(inner, k[0].max(), (1 - eps - k[-1]).max()))
        firsts.append(k[0])
    assert max(gaps[-10:]) < 2 / n and max(gaps) < 2 / n
    # The points move from batch to batch, and cover each stratum evenly.
    firsts = np.concatenate(firsts) * n / (1 - eps)
    assert abs(firsts.mean() - 0.5) < 4 * 12**-0.5 / len(firsts) ** 0.5
    assert firsts.min() < 0.01 and firsts.max() > 0.99


@pytest.mark.parametrize(
    ("law", "sigma"),
    [("uniform", (1.0, 1e-3)), ("log", (1e-2, 1e-3)), ("squared", (1.0, 0.0)), ("squared", (1e-3, 0.0))],
)
def test_weighted_sums_are_integrals(law, sigma):
    high, low = sigma
    points = likelihood.kappa_points(KEYS, 32, sigma=sigma, law=law)
    value = np.asarray(points.linear.r, np.float64)
    assert value.max() <= high and value.min() >= low and value.min() > 0
    np.testing.assert_allclose(np.asarray(points.linear.t) + value, 1.0, atol=2e-7)
    weight = np.asarray(points.weight, np.float64)
    for power in (0, 1, 2):
        estimates = (weight * value**power).sum(0)
        exact = (high ** (power + 1) - low ** (power + 1)) / (power + 1)
        error = estimates.std() / len(estimates) ** 0.5
        assert abs(estimates.mean() - exact) < 4 * error + 2e-6 * exact


def test_one_point_is_uniform_and_wrong_arguments_are_named():
    one = np.asarray(likelihood.kappa_points(KEYS, 1, sigma=(1.0, 0.5)).linear.t)
    assert 0 <= one.min() < 0.02 and 0.48 < one.max() <= 0.5
    for arguments, complaint in (
        ({"points": 0, "sigma": (1.0, 0.0)}, "points = 0"),
        ({"points": 1, "sigma": (0.0, 1.0)}, r"sigma = \(0.0, 1.0\)"),
        ({"points": 1, "sigma": (1.0, 0.0), "law": "log"}, "low > 0"),
        ({"points": 1, "sigma": (1.0, 0.0), "law": "cubic"}, "law = 'cubic'"),
    ):
        with pytest.raises(ValueError, match=complaint):
            likelihood.kappa_points(KEYS, **arguments)


def test_training_time_has_the_linear_kappa():
    points = likelihood.kappa_points(KEYS[:8], 16, sigma=(1.0, 1e-4))
    for name, exponent in (("polynomial", 3.0), ("polynomial", 0.5), ("sine_squared", 1.0)):
        scheduler = flow.get_scheduler(name, exponent=exponent)
        out = scheduler(likelihood.training_time(scheduler, points.linear))
        np.testing.assert_allclose(out.alpha_t, points.linear.t, atol=1e-6)
        np.testing.assert_allclose(out.sigma_t, points.linear.r, rtol=1e-4)


def test_answers_are_shared_where_the_softmax_is_the_same():
    def numbers(source, parametrization, suppress, names):
        x = jnp.zeros((1, 2), jnp.int32)
        queries = [
            likelihood.linear_objective(name, source, parametrization, suppress).query(x, x, jnp.asarray([0.5]))
            for name in names
        ]
        return likelihood.shared_queries(queries)

    uniform, mask = flow.UniformSource(5), flow.MaskSource(5)
    assert numbers(uniform, "leave_one_out", False, likelihood.bound_names(uniform)) == [1, 1]
    assert numbers(uniform, "posterior", False, likelihood.bound_names(uniform)) == [0, 1]
    assert numbers(mask, "posterior", True, likelihood.bound_names(mask)) == [0, 0]
    assert numbers(mask, "leave_one_out", True, likelihood.bound_names(mask)) == [0, 0]


def test_only_bounds_are_bounds():
    with pytest.raises(ValueError, match="bound = 'cross_entropy'"):
        likelihood.linear_objective("cross_entropy", flow.UniformSource(5), "posterior", False)
    tails = {
        (name, parametrization): likelihood.has_exact_tail(
            likelihood.linear_objective(name, flow.MaskSource(5), parametrization, True)
        )
        for name in ("generalized_kl", "masked_elbo", "masked_count")
        for parametrization in ("posterior", "leave_one_out")
    }
    assert [pair for pair, exact in tails.items() if not exact] == [("generalized_kl", "posterior")]


def test_counts_are_stratified_and_subsets_uniform():
    counts = np.asarray(likelihood.mask_counts(KEYS, 10, 5))
    for j, row in enumerate(counts):
        assert set(row) == {j // 2 + 1}
    x = jnp.broadcast_to(jnp.arange(4, dtype=jnp.int32)[None], (500, 4))
    masked = flow.mask_subset(KEYS, x, jnp.full((500,), 2, jnp.int32), 9)
    assert ((masked == 9).sum(1) == 2).all()
    assert ((masked == x) | (masked == 9)).all()
    share = np.asarray((masked == 9).mean(0))
    np.testing.assert_allclose(share, 0.5, atol=4 * 0.5 / 500**0.5)
