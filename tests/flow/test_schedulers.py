"""Every row of mathematics.md A against its definition, in float64 on the host and float32 in jax, at both ends."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow

V = 50257
W = math.acos(math.sqrt(1 / V))
DEFINITIONS = {
    "linear": (flow.CondOTScheduler(), lambda t: t),
    "t^0.5": (flow.PolynomialConvexScheduler(0.5), np.sqrt),
    "t^2": (flow.PolynomialConvexScheduler(2), lambda t: t**2),
    "t^3.5": (flow.PolynomialConvexScheduler(3.5), lambda t: t**3.5),
    "r^3": (flow.OneMinusPowerScheduler(3), lambda t: 1 - (1 - t) ** 3),
    "cosine_md4": (flow.CosineMD4Scheduler(), lambda t: 1 - np.cos(np.pi * t / 2)),
    "sine": (flow.SineScheduler(), lambda t: np.sin(np.pi * t / 2)),
    "sine_squared": (flow.SineSquaredScheduler(), lambda t: np.sin(np.pi * t / 2) ** 2),
    "smoothstep": (flow.CubicScheduler(), lambda t: 3 * t**2 - 2 * t**3),
    "cubic": (
        flow.CubicScheduler(0.3, 1.5),
        lambda t: -2 * t**3 + 3 * t**2 + 0.3 * (t**3 - 2 * t**2 + t) + 1.5 * (t**3 - t**2),
    ),
    "log_linear": (flow.LogLinearScheduler(1e-3), lambda t: 1 - (1 - 1e-3) * (1 - t)),
    "geometric": (flow.GeometricScheduler(1e-4, 20.0), lambda t: np.exp(-(1e-4**t) * 20.0 ** (1 - t))),
    "kinetic": (
        flow.KineticOptimalUniformScheduler(V),
        lambda t: 1 - np.sin((1 - t) * W) ** 2 / np.sin(W) ** 2,
    ),
}
# r lambda as t -> 1, the last column of the table.
END_OF_RATE = {"sine": 2, "sine_squared": 2, "smoothstep": 2, "kinetic": 2, "r^3": 3, "geometric": 0}
every_scheduler = pytest.mark.parametrize("name", DEFINITIONS)


@every_scheduler
def test_host_values_are_the_definition(name):
    scheduler, kappa = DEFINITIONS[name]
    t = np.linspace(0.02, 0.98, 49)
    out = scheduler.float64(t)
    np.testing.assert_allclose(out.kappa, kappa(t), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(out.kappa + out.sigma, 1, atol=4e-16)
    h = 1e-4
    slope = (8 * (kappa(t + h) - kappa(t - h)) - (kappa(t + 2 * h) - kappa(t - 2 * h))) / (12 * h)
    np.testing.assert_allclose(out.d_kappa, slope, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(out.jump_rate, slope / (1 - kappa(t)), rtol=1e-7)


@every_scheduler
def test_traced_values_are_the_host_values(name):
    scheduler, _ = DEFINITIONS[name]
    r = np.array([1.0, 1 - 2.0**-20, 0.9, 0.5, 0.25, 0.01, 1e-4, 1e-7])
    t = 1 - r
    out = jax.jit(scheduler)(flow.Time(jnp.asarray(t, jnp.float32), jnp.asarray(r, jnp.float32)))
    exact = scheduler.float64(t, r)
    assert out.alpha_t.dtype == jnp.float32
    np.testing.assert_allclose(out.alpha_t, exact.kappa, rtol=2e-6)
    np.testing.assert_allclose(out.sigma_t, exact.sigma, rtol=2e-6)
    np.testing.assert_allclose(out.d_alpha_t, exact.d_kappa, rtol=2e-6)
    np.testing.assert_array_equal(out.d_sigma_t, -out.d_alpha_t)


@every_scheduler
def test_inverses_lead_back(name):
    scheduler, _ = DEFINITIONS[name]
    r = np.array([1.0, 1 - 1e-6, 0.7, 0.5, 0.3, 1e-3, 1e-8, 0.0])
    out = scheduler.float64(1 - r, r)
    back = scheduler.float64_inverse(out.kappa, out.sigma)
    np.testing.assert_allclose(back.t, 1 - r, atol=1e-12)
    slack = 1e-4 if name == "geometric" else 1e-10  # kappa_1 of the geometric scheduler cannot tell r below 1e-8
    np.testing.assert_allclose(back.r, r, rtol=slack, atol=1e-12)
    t = jnp.linspace(0.05, 0.95, 19)
    traced = scheduler(t)
    atol = 3e-5 if name == "geometric" else 3e-6
    np.testing.assert_allclose(scheduler.kappa_inverse(traced.alpha_t), t, atol=atol)
    np.testing.assert_allclose(scheduler.snr_inverse(traced.alpha_t / traced.sigma_t), t, atol=atol)


@every_scheduler
def test_ends(name):
    scheduler, _ = DEFINITIONS[name]
    out = scheduler(jnp.array([0.0, 1.0]))
    if name == "log_linear":
        np.testing.assert_allclose(out.alpha_t, [1e-3, 1], rtol=1e-6)
    elif name == "geometric":
        np.testing.assert_allclose(out.alpha_t, [math.exp(-20), math.exp(-1e-4)], rtol=1e-6)
    else:
        np.testing.assert_allclose(out.alpha_t, [0, 1], atol=2e-7)
        np.testing.assert_array_equal(out.sigma_t[1], 0)
        assert scheduler.jump_rate(1.0) == jnp.inf
    r = 1e-7
    assert r * scheduler.float64(1 - r, r).jump_rate == pytest.approx(END_OF_RATE.get(name, 1), abs=2e-6)


@every_scheduler
def test_step_probability_is_the_integrated_hazard(name):
    scheduler, _ = DEFINITIONS[name]
    steps = np.arange(9) / 8
    start, end = flow.Time(steps[:-1], 1 - steps[:-1]), flow.Time(steps[1:], 1 - steps[1:])
    nodes, weights = np.polynomial.legendre.leggauss(60)
    for j in range(1, 7):  # int lambda over [t, s] by Gauss-Legendre; the ends have poles
        t = steps[j] + (nodes + 1) / 16
        hazard = float(weights @ scheduler.float64(t).jump_rate) / 16
        assert scheduler.float64_step_probability(start, end)[j] == pytest.approx(-math.expm1(-hazard), rel=1e-9)
    np.testing.assert_allclose(
        scheduler.step_probability(start, end), scheduler.float64_step_probability(start, end), rtol=1e-4
    )
    np.testing.assert_allclose(
        -jnp.expm1(-scheduler.integrated_hazard(start, end)), scheduler.step_probability(start, end), rtol=1e-4
    )
    if name != "geometric":
        assert scheduler.float64_step_probability(start, end)[-1] == 1


def test_members_of_the_family_coincide_where_the_table_says_so():
    t = jnp.linspace(0.0, 1.0, 11)
    for one, two in [
        (flow.CubicScheduler(0, 2), flow.PolynomialConvexScheduler(2)),
        (flow.OneMinusPowerScheduler(1), flow.CondOTScheduler()),
        (flow.PolynomialConvexScheduler(1), flow.CondOTScheduler()),
        (flow.LogLinearScheduler(0.0), flow.CondOTScheduler()),
    ]:
        for a, b in zip(one(t), two(t), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-7)
    assert flow.get_scheduler("kinetic_optimal_mask") == flow.SineSquaredScheduler()
    assert flow.KineticOptimalUniformScheduler(V).float64(0.5).kappa == pytest.approx(0.50222, abs=5e-6)


def test_names_as_configs_write_them():
    assert flow.get_scheduler("polynomial") == flow.PolynomialConvexScheduler(1.0)
    assert flow.get_scheduler("polynomial", exponent=2) == flow.PolynomialConvexScheduler(2)
    assert flow.get_scheduler("one_minus_power", exponent=3) == flow.OneMinusPowerScheduler(3)
    assert flow.get_scheduler("cubic", a=0.5, b=1.0) == flow.CubicScheduler(0.5, 1.0)
    assert flow.get_scheduler("kinetic_optimal_uniform", vocab_size=9) == flow.KineticOptimalUniformScheduler(9)


@pytest.mark.parametrize("name", ["poly", "cosine", "poly3", "cosine2"])
def test_ambiguous_names_are_refused(name):
    with pytest.raises(ValueError, match="ambiguous: expected"):
        flow.get_scheduler(name)


@pytest.mark.parametrize(
    "call",
    [
        lambda: flow.get_scheduler("quadratic"),
        lambda: flow.get_scheduler("linear", exponent=2),
        lambda: flow.get_scheduler("linear", a=1.0),
        lambda: flow.get_scheduler("kinetic_optimal_uniform"),
        lambda: flow.PolynomialConvexScheduler(0),
        lambda: flow.PolynomialConvexScheduler(float("nan")),
        lambda: flow.OneMinusPowerScheduler(-1.0),
        lambda: flow.CubicScheduler(9.0, 9.0),
        lambda: flow.CubicScheduler(-0.1, 0.0),
        lambda: flow.LogLinearScheduler(1.0),
        lambda: flow.GeometricScheduler(2.0, 1.0),
        lambda: flow.KineticOptimalUniformScheduler(1),
        lambda: flow.CondOTScheduler()(1.5),
        lambda: flow.CondOTScheduler()(jnp.array([0.5, -0.1])),
        lambda: flow.CondOTScheduler()(float("nan")),
        lambda: flow.CondOTScheduler().float64(1.1),
        lambda: flow.CondOTScheduler().kappa_inverse(2.0),
    ],
)
def test_bad_input_says_what_is_accepted(call):
    with pytest.raises(ValueError, match="expected"):
        call()


@dataclasses.dataclass(frozen=True)
class Late(flow.Scheduler):
    """kappa = t (1 + t) / 2, without an inverse."""

    def formulas(self, xp, t, r):
        return t * (1 + t) / 2, r * (3 - r) / 2, t + 0.5


@pytest.mark.slow
def test_a_scheduler_needs_no_closed_inverse():
    late = Late()
    kappa = np.array([0.0, 1e-12, 1e-3, 0.3, 0.5, 0.9, 1 - 1e-9, 1.0])
    exact = 4 * kappa / (1 + np.sqrt(1 + 8 * kappa))  # root of t (1 + t) = 2 kappa
    host = late.float64_inverse(kappa)
    np.testing.assert_allclose(host.t, exact, rtol=1e-14, atol=1e-18)
    sigma = np.array([1e-15, 1e-9, 1e-4])
    left = late.float64_inverse(1 - sigma, sigma).r
    np.testing.assert_allclose(left, 4 * sigma / (3 + np.sqrt(9 - 8 * sigma)), rtol=1e-14, atol=1e-19)
    found = jax.jit(late.inverse)(jnp.asarray(kappa, jnp.float32), jnp.asarray(1 - kappa, jnp.float32))
    np.testing.assert_allclose(found.t, exact, rtol=3e-7, atol=1e-19)
    # Through the training clock, a grid and a sampler that runs on another clock.
    time, weight = flow.sample_times(jax.random.key(0), 64, law="squared", method="stratified", scheduler=late)
    root = np.sort(np.sqrt(late(time).sigma_t))  # one in each 64th of [0, 1]
    np.testing.assert_allclose(root, (np.arange(64) + 0.5) / 64, atol=0.51 / 64)
    assert (np.asarray(weight) > 0).all()
    grid, _ = flow.make_grid(late, steps=8, time_grid="kappa_uniform")
    np.testing.assert_allclose(late.float64(grid.t, grid.r).kappa, np.arange(9) / 8, atol=1e-14)
    told = []

    def model(x, t):
        jax.debug.callback(lambda t: told.append(float(t)), t[0])
        return jnp.zeros((*x.shape, 3))

    path = flow.MixtureDiscreteProbPath(late)
    solver = flow.Solver(model, path, flow.UniformSource(3), scheduler=flow.CondOTScheduler())
    solver.sample(jax.random.key(0), jnp.zeros((2, 64), jnp.int32), steps=4).block_until_ready()
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(told), late.float64_inverse(np.arange(4) / 4).t, rtol=1e-6)
