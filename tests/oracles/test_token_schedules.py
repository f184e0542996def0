"""Paths with a schedule for each token: kinetic-optimal, GenMD4; on the exact posterior (mathematics.md C.3, F)."""

import jax
import jax.numpy as jnp
import numpy as np
import path_laws
import pytest
from path_frequencies import check_frequencies
from path_laws import genmd4, kinetic_optimal, logits_of
from test_kolmogorov import TIMES
from toys import ENTROPIES, TOYS, source_law

from dfm_jax import flow

KO_BOUNDS = {"A": 2.543363718, "C": 1.586621213, "D": 3.525901983}
EXPONENTS = {
    "equal": lambda n: np.ones(n),
    "slow": lambda n: np.linspace(0.5, 1.0, n),
    "spread": lambda n: np.linspace(3.0, 0.4, n),
    "steep": lambda n: 0.3 * 2.0 ** np.arange(n),
}


def kinetic(toy_name: str, scheduler=None):
    """(law, path, source) with p ~ (1..V)."""
    p = source_law("ramp", TOYS[toy_name].vocab_size)
    source = flow.CategoricalSource(p)
    return kinetic_optimal(p), flow.KineticOptimalProbPath(scheduler or flow.CondOTScheduler(), source), source


def masked(toy_name: str, exponents: str, scheduler=None):
    size = TOYS[toy_name].vocab_size
    w = EXPONENTS[exponents](size)
    return genmd4(w), flow.GenMD4ProbPath(scheduler or flow.CondOTScheduler(), size, w), flow.MaskSource(size)


def still_noise(toy_name: str):
    """log sigma(v): from xhat to the law of x_1 given that x_t is noise."""
    w = np.arccos(np.sqrt(source_law("ramp", TOYS[toy_name].vocab_size)))
    return lambda kappa, sigma: 2 * np.log(np.sin(sigma * w) / np.sin(w))


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("toy", KO_BOUNDS)
def test_kinetic_optimal_bound_has_its_known_value(toy):
    law, path, source = kinetic(toy)
    with jax.enable_x64(True):
        posterior = path_laws.bound(toy, law, path, source, "generalized_kl", "posterior")
        assert posterior == pytest.approx(KO_BOUNDS[toy], abs=2e-9)
    value = path_laws.bound(
        toy, law, path, source, "generalized_kl", "leave_one_out", extra=still_noise(toy), dtype=np.float32
    )
    assert value == pytest.approx(KO_BOUNDS[toy], abs=3e-6)


def test_kinetic_optimal_bound_does_not_depend_on_the_clock():
    law, path, source = kinetic("A", flow.SineSquaredScheduler())
    with jax.enable_x64(True):
        value = path_laws.bound("A", law, path, source, "generalized_kl", "leave_one_out", extra=still_noise("A"))
    assert value == pytest.approx(KO_BOUNDS["A"], abs=1e-8)


def test_kinetic_optimal_on_a_uniform_law_is_the_scalar_schedule():
    path = flow.KineticOptimalProbPath(flow.CondOTScheduler(), flow.CategoricalSource(np.full(6, 1 / 6)))
    scheduler = flow.KineticOptimalUniformScheduler(6)
    t = jnp.linspace(0.0, 0.999, 40)
    kappa, sigma = path.schedule(jnp.zeros(40, jnp.int32), t, 1 - t)
    np.testing.assert_allclose(kappa, scheduler(t).alpha_t, atol=3e-7)
    np.testing.assert_allclose(sigma, scheduler(t).sigma_t, atol=3e-7)
    np.testing.assert_allclose(path.rate(jnp.zeros(40, jnp.int32), t, 1 - t), scheduler.jump_rate(t), rtol=3e-5)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("exponents", EXPONENTS)
@pytest.mark.parametrize("toy", "ABCDE")
def test_genmd4_bound_is_the_entropy(toy, exponents):
    """For every w: the mixture of paths is Markov, since a revealed token tells its own schedule."""
    law, path, source = masked(toy, exponents)
    with jax.enable_x64(True):
        value = path_laws.bound(toy, law, path, source, "masked_elbo", "posterior")
    assert value == pytest.approx(ENTROPIES[toy], abs=1e-9)


def test_genmd4_in_float32_and_on_another_clock():
    law, path, source = masked("A", "spread", flow.CosineMD4Scheduler())
    value = path_laws.bound("A", law, path, source, "masked_elbo", "posterior", dtype=np.float32)
    assert value == pytest.approx(ENTROPIES["A"], abs=3e-6)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("toy", "AD")
@pytest.mark.parametrize("kind", ["kinetic", "masked"])
def test_velocity_generates_the_path(toy, kind):
    clock = flow.SineScheduler()
    law, path, source = kinetic(toy, clock) if kind == "kinetic" else masked(toy, "spread", clock)
    with jax.enable_x64(True):
        for t in TIMES:
            assert path_laws.generates(toy, law, path, source, flow.TokenForwardVelocity(), t) < 1e-10


@pytest.mark.parametrize("kind", ["kinetic", "masked"])
def test_sampler_is_of_first_order_with_exact_marginals(kind):
    law, path, source = kinetic("A") if kind == "kinetic" else masked("A", "spread")
    tv = {}
    for steps in (32, 64):
        after = path_laws.law_after("A", law, path, source, "exact", steps, marginal=True)
        tv[steps] = path_laws.distance("A", after, source.num_states)
    assert np.log2(tv[32] / tv[64]) == pytest.approx(1.0, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kinetic", "masked"])
def test_frequencies_are_the_enumerated_law(kind):
    law, path, source = kinetic("A") if kind == "kinetic" else masked("A", "spread")
    tables = [logits_of("A", law(j / 4, 1 - j / 4), "posterior", source.num_states) for j in range(4)]
    after = path_laws.law_after("A", law, path, source, "exact", 4, marginal=True)
    check_frequencies(path, source, "exact", tables, after)


def test_jumps_keep_their_digits():
    """Short steps of a long grid in float32, against the same in float64."""
    law = np.random.default_rng(0).dirichlet(np.full(50, 0.3))
    path = flow.KineticOptimalProbPath(flow.CondOTScheduler(), flow.CategoricalSource(law))
    step = path.get_step("exact")
    plan = step.plan(path.scheduler, path.source, flow.make_grid(path.scheduler, steps=1024)[0])
    w, ids = np.arccos(np.sqrt(law)), jnp.arange(50, dtype=jnp.int32)
    for j in (0, 1, 300, 900, 1022, 1023):
        row = {name: jnp.asarray(value[j], jnp.float32) for name, value in plan.scalars.items()}
        t, s = (1024 - j) / 1024, (1023 - j) / 1024
        exact = np.sin((t - s) * w) * np.sin((t + s) * w) / np.sin(t * w) ** 2
        np.testing.assert_allclose(path.jump(ids, row), exact, rtol=2e-5, atol=1e-9)
        assert path.most(row) >= path.jump(ids, row).max()


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("kind", ["kinetic", "masked"])
def test_samples_have_the_law_of_the_path(kind):
    law, path, source = kinetic("A") if kind == "kinetic" else masked("A", "spread")
    x_1 = jnp.tile(jnp.arange(3, dtype=jnp.int32), (20_000, 1))
    x_0 = source.sample(jax.random.key(1), x_1.shape)
    x_t = np.asarray(path.sample(jax.random.key(3), x_0, x_1, jnp.full(len(x_1), 0.4)).x_t)
    for v in range(3):
        share = np.bincount(x_t[:, v], minlength=source.num_states) / len(x_t)
        np.testing.assert_allclose(share, law(0.4, 0.6)[:, v], atol=4.5 * np.sqrt(0.25 / len(x_t)))


def test_log_probability_is_that_of_the_sample():
    law, path, _ = masked("A", "spread")
    x_1 = jnp.arange(3, dtype=jnp.int32)[None]
    for x_t in (x_1, jnp.full_like(x_1, 3)):
        expected = np.log(law(0.3, 0.7)[np.asarray(x_t[0]), np.arange(3)])
        np.testing.assert_allclose(path.log_probability(x_t, x_1, jnp.full(1, 0.3))[0], expected, rtol=1e-5)


def test_refuses():
    _, path, _ = kinetic("A")
    with pytest.raises(ValueError, match="expected the path's own"):
        flow.get_objective("generalized_kl", path=path, source=flow.UniformSource(3))
    with pytest.raises(ValueError, match="exponents of shape"):
        flow.GenMD4ProbPath(flow.CondOTScheduler(), 3, np.zeros(3))
    with pytest.raises(ValueError, match="expected MaskSource"):
        path = flow.GenMD4ProbPath(flow.CondOTScheduler(), 3)
        flow.get_objective("masked_elbo", path=path, source=flow.UniformSource(3))
