"""The metric-induced path: bounds, samplers and velocities (mathematics.md C.5, F), on the exact posterior."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import path_laws
import pytest
from path_frequencies import check_frequencies
from path_laws import logits_of, metric
from test_kolmogorov import TIMES
from toys import TOYS

from dfm_jax import flow
from dfm_jax.flow.paths.metric.beta import beta_float64

# name -> embeddings of V tokens, half the power of their distance
METRICS = {
    "line1": lambda n: (np.arange(n)[:, None], 0.5),
    "line2": lambda n: (np.arange(n)[:, None], 1.0),
    "disc": lambda n: (np.eye(n) / math.sqrt(2), 1.0),
}
DISTANCES = {
    "line1": lambda n: np.abs(np.subtract.outer(np.arange(n), np.arange(n))) * 1.0,
    "line2": lambda n: np.subtract.outer(np.arange(n), np.arange(n)) ** 2 * 1.0,
    "disc": lambda n: 1.0 - np.eye(n),
}
BOUNDS = {
    ("A", "line1"): 2.501235064,
    ("A", "line2"): 2.543804481,
    ("C", "line1"): 1.518379172,
    ("C", "line2"): 1.579941852,
    ("D", "line1"): 3.471507176,
    ("D", "line2"): 3.534175205,
    ("A", "disc"): 2.5809571234,  # the uniform mixture's generalized KL
}


def path_of(toy_name, kind, beta=None, clock=None):
    """(law from the definition, path, source)."""
    size = TOYS[toy_name].vocab_size
    beta = beta or flow.PowerBeta(3.0, 0.9)
    embeddings, power = METRICS[kind](size)
    path = flow.MetricProbPath(clock or flow.CondOTScheduler(), embeddings, beta, power)
    law = metric(DISTANCES[kind](size), lambda kappa, sigma: float(beta_float64(beta, kappa, sigma)[0]))
    return law, path, flow.UniformSource(size)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("toy", "kind"), BOUNDS)
def test_bound_has_its_known_value(toy, kind):
    law, path, source = path_of(toy, kind)
    with jax.enable_x64(True):
        value = path_laws.bound(toy, law, path, source, "generalized_kl", "posterior", step=1 / 16)
    assert value == pytest.approx(BOUNDS[toy, kind], abs=2e-9)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("beta", [flow.PowerBeta(1.0, 1.0), flow.ConstantSpeedBeta(DISTANCES["line2"](3))])
def test_bound_does_not_depend_on_beta_or_clock(beta):
    clock = None if isinstance(beta, flow.PowerBeta) else flow.CosineMD4Scheduler()
    law, path, source = path_of("A", "line2", beta, clock)
    with jax.enable_x64(True):
        value = path_laws.bound("A", law, path, source, "generalized_kl", "posterior", step=1 / 16)
    assert value == pytest.approx(BOUNDS["A", "line2"], abs=5e-8)


@pytest.mark.slow
def test_bound_in_float32():
    law, path, source = path_of("A", "line2")
    value = path_laws.bound("A", law, path, source, "generalized_kl", "posterior", dtype=np.float32, step=1 / 16)
    assert value == pytest.approx(BOUNDS["A", "line2"], abs=1e-5)


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("power", [None, 0.0, 1.0, 2.0, math.inf])
@pytest.mark.parametrize(("toy", "kind"), [("A", "line1"), ("A", "disc"), ("D", "line2")])
def test_velocity_generates_the_path(toy, kind, power):
    """Kinetic-optimal, R*, power a and power-infinity."""
    law, path, source = path_of(toy, kind)
    with jax.enable_x64(True):
        for t in TIMES:
            assert path_laws.generates(toy, law, path, source, flow.MetricVelocity(power), t) < 1e-10


@pytest.mark.slow
def test_kinetic_optimal_rates_are_those_of_the_paper():
    """C(x|x_1) d beta [d(z, x_1) - d(x, x_1)]_+ for a posterior that is sure."""
    law, path, source = path_of("A", "line2")
    t, apart, v = 0.3, DISTANCES["line2"](3), 2
    logits = jnp.tile(jnp.where(jnp.arange(3) == v, 0.0, -jnp.inf), (1, 3, 1))
    z = jnp.arange(3, dtype=jnp.int32)[None]
    rates = np.asarray(flow.MetricVelocity()(logits, z, t, path, source))[0]
    slope = float(path.beta(np, t, 1 - t)[1])
    expected = law(t, 1 - t)[:, v][None] * slope * np.maximum(apart[:, v][:, None] - apart[:, v][None], 0)
    np.testing.assert_allclose(rates[~np.eye(3, dtype=bool)], expected[~np.eye(3, dtype=bool)], rtol=2e-5)


def test_constant_speed_on_the_discrete_metric_is_the_kinetic_optimal_mixture():
    size = 6
    beta, scheduler = flow.ConstantSpeedBeta(DISTANCES["disc"](size)), flow.KineticOptimalUniformScheduler(size)
    assert beta.length == pytest.approx(2 * math.acos(math.sqrt(1 / size)), abs=1e-9)
    for t in np.linspace(0.02, 0.98, 25):
        value, slope = beta(np, np.float64(t), np.float64(1 - t))
        kappa = -np.expm1(-value) / (1 + (size - 1) * np.exp(-value))
        assert kappa == pytest.approx(float(scheduler.float64(t).kappa), abs=5e-9)
        change = (beta(np, t + 1e-5, 1 - t - 1e-5)[0] - beta(np, t - 1e-5, 1 - t + 1e-5)[0]) / 2e-5
        assert slope == pytest.approx(change, rel=1e-5)


TV = {
    "euler": ({1: 2.49e-1, 4: 1.35e-1, 512: 1.56e-3}, 0.97),
    "kinetic_optimal": ({1: 2.49e-1, 4: 1.18e-1, 512: 1.08e-3}, 1.00),
    "maximal": ({1: 2.49e-1, 4: 1.16e-1, 512: 9.16e-4}, 1.00),
}


@pytest.mark.slow
@pytest.mark.parametrize("step", TV)
def test_total_variation(step):
    """The printed digits of mathematics.md F(ii), toy A, line2, beta = 3 (t / r)^0.9."""
    law, path, source = path_of("A", "line2")
    printed, order = TV[step]
    with jax.enable_x64(True):
        tv = {
            n: path_laws.distance(
                "A", path_laws.law_after("A", law, path, source, step, n, marginal=step == "maximal"), 3
            )
            for n in (1, 4, 256, 512)
        }
    for n, value in printed.items():
        assert tv[n] == pytest.approx(value, rel=6e-3)
    assert np.log2(tv[256] / tv[512]) == pytest.approx(order, abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["kinetic_optimal", "maximal"])
def test_frequencies_are_the_enumerated_law(step):
    law, path, source = path_of("A", "line2")
    tables = [logits_of("A", law(j / 4, 1 - j / 4), "posterior", 3) for j in range(4)]
    check_frequencies(path, source, step, tables, path_laws.law_after("A", law, path, source, step, 4, marginal=False))


@pytest.mark.slow
def test_samples_at_gpt2s_vocabulary_have_the_law_of_the_path():
    """A chi-square over V = 50257 tokens, those expected less than 8 times taken together."""
    size, draws, x_1 = 50257, 16_384, 11
    rng = np.random.default_rng(0)
    table = rng.normal(size=(size, 16)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    path = flow.MetricProbPath(flow.CondOTScheduler(), table, flow.PowerBeta(), 2.0)
    t = 0.5
    tokens = jnp.full((64, draws // 64), x_1, jnp.int32)
    x_t = np.asarray(jax.jit(lambda key: path.sample(key, tokens, tokens, jnp.full(64, t)).x_t)(jax.random.key(0)))
    square = ((table.astype(np.float64) - table[x_1]) ** 2).sum(axis=1)
    weight = np.exp(-3.0 * square**2)
    expected = draws * weight / weight.sum()
    counts = np.bincount(x_t.ravel(), minlength=size).astype(np.float64)
    rare = np.argsort(expected)[: (expected < 8).sum()]
    # Rare tokens in groups of about 25 expected draws, by their size.
    groups = np.floor(np.cumsum(expected[rare]) / 25).astype(int)
    common = np.setdiff1d(np.arange(size), rare)
    seen = np.concatenate([counts[common], np.bincount(groups, weights=counts[rare])])
    wanted = np.concatenate([expected[common], np.bincount(groups, weights=expected[rare])])
    freedom = len(seen) - 1
    excess = (((seen - wanted) ** 2 / wanted).sum() - freedom) / np.sqrt(2 * freedom)
    assert freedom > 300 and abs(excess) < 4.5


@pytest.mark.slow
def test_blocks_do_not_change_a_sample(monkeypatch):
    path = flow.MetricProbPath(flow.CondOTScheduler(), np.random.default_rng(0).normal(size=(20, 4)))
    x_1 = jax.random.randint(jax.random.key(1), (3, 7), 0, 20, jnp.int32)
    whole = path.sample(jax.random.key(0), x_1, x_1, jnp.full(3, 0.3)).x_t
    monkeypatch.setattr("dfm_jax.flow.paths.metric.path.BLOCK", 3 * 20 * 2)
    np.testing.assert_array_equal(path.sample(jax.random.key(0), x_1, x_1, jnp.full(3, 0.3)).x_t, whole)


def test_refuses():
    clock = flow.CondOTScheduler()
    with pytest.raises(ValueError, match="no two rows alike"):
        flow.MetricProbPath(clock, np.ones((3, 2)))
    path = flow.MetricProbPath(clock, np.eye(3))
    with pytest.raises(ValueError, match="expected UniformSource"):
        flow.get_objective("generalized_kl", path=path, source=flow.MaskSource(3))
    with pytest.raises(ValueError, match="expected posterior"):
        flow.get_objective("cross_entropy", path=path, source=flow.UniformSource(3), parametrization="leave_one_out")
    with pytest.raises(ValueError, match="expected distances"):
        flow.ConstantSpeedBeta(np.zeros((3, 3)))
