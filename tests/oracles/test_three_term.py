"""The three-term path: F(i) bounds, F(ii) samplers and F(iii) velocities of MATH.md, on the exact posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from path_laws import expectation, logits_of, slope, three_term
from quadrature import tanh_sinh
from toys import ENTROPIES, TOYS, marginal_law, sequences

from dfm_jax import flow
from dfm_jax.flow import grids

GAPS = {
    ("A", 0.25): 0.0887,
    ("A", 0.5): 0.1138,
    ("A", 1.0): 0.1353,
    ("D", 0.25): 0.1274,
    ("D", 0.5): 0.1639,
    ("D", 1.0): 0.1970,
}


def path_of(toy_name: str, g: float, scheduler: flow.Scheduler | None = None) -> flow.ThreeTermProbPath:
    return flow.ThreeTermProbPath(scheduler or flow.CondOTScheduler(), TOYS[toy_name].vocab_size, g)


def bound(toy_name, loss, parametrization, path, dtype=np.float64) -> float:
    toy = TOYS[toy_name]
    source = flow.MaskSource(toy.vocab_size)
    objective = flow.get_objective(loss, path=path, source=source, parametrization=parametrization)
    law = three_term(path.noise, toy.vocab_size)
    charged = jax.jit(lambda logits, x_1, x_t, t: flow.loss_from_logits(objective, logits, x_1, x_t, t))
    total = 0.0
    for t, r, weight in zip(*tanh_sinh(), strict=True):
        if dtype is np.float32 and min(t, r) < 1e-12:
            continue
        kappa, sigma, *_ = path.scheduler.float64(t, r)
        conditional = law(float(kappa), float(sigma))
        logits = logits_of(toy_name, conditional, parametrization, source.num_states)

        def losses(index, x_t, x_1, logits=logits, t=t, r=r):
            time = flow.Time(jnp.asarray(t, dtype), jnp.asarray(r, dtype))
            return np.asarray(charged(jnp.asarray(logits[index], dtype), x_1, x_t, time), np.float64)

        total += weight * expectation(toy_name, conditional, losses)
    return total


@pytest.mark.parametrize(
    ("toy", "g", "loss", "parametrization", "value", "digits"),
    [
        *((toy, g, "time_reversal", "leave_one_out", ENTROPIES[toy], 1e-9) for toy, g in GAPS),
        ("B", 0.5, "time_reversal", "leave_one_out", ENTROPIES["B"], 1e-9),
        ("A", 0.5, "time_reversal", "posterior", ENTROPIES["A"], 1e-9),
        *((toy, g, "generalized_kl", "leave_one_out", ENTROPIES[toy] + gap, 6e-5) for (toy, g), gap in GAPS.items()),
        ("A", 0.5, "generalized_kl", "posterior", ENTROPIES["A"] + 0.1138, 6e-5),
    ],
)
def test_bound_has_its_known_value(toy, g, loss, parametrization, value, digits):
    with jax.enable_x64(True):
        assert bound(toy, loss, parametrization, path_of(toy, g)) == pytest.approx(value, abs=digits)


def test_bounds_in_float32_and_on_another_clock():
    clock = flow.CosineMD4Scheduler()
    with jax.enable_x64(True):
        exact = bound("A", "generalized_kl", "leave_one_out", path_of("A", 0.5))
        moved = bound("A", "generalized_kl", "leave_one_out", path_of("A", 0.5, clock))
        assert moved == pytest.approx(exact, abs=1e-8)
    for loss, value in (("generalized_kl", exact), ("time_reversal", ENTROPIES["A"])):
        assert bound("A", loss, "leave_one_out", path_of("A", 0.5), np.float32) == pytest.approx(value, abs=3e-6)


@pytest.mark.parametrize("toy_name", "AD")
@pytest.mark.parametrize("g", [0.25, 1.0])
@pytest.mark.parametrize("velocity", [flow.ThreeTermForwardVelocity(), flow.ThreeTermReversalVelocity()])
def test_velocity_generates_the_path(toy_name, g, velocity):
    from test_kolmogorov import TIMES, generator

    toy, path = TOYS[toy_name], path_of(toy_name, g, flow.SineScheduler())
    source, law = flow.MaskSource(toy.vocab_size), three_term(g, toy.vocab_size)
    tokens = sequences(source.num_states, toy.length)

    def at(t):
        value = path.scheduler.float64(t)
        return law(float(value.kappa), float(value.sigma))

    with jax.enable_x64(True):
        for t in TIMES:
            logits = logits_of(toy_name, at(t), "posterior", source.num_states)
            rates = np.asarray(velocity(jnp.asarray(logits), jnp.asarray(tokens), t, path, source))
            assert rates[~np.eye(source.num_states, dtype=bool)[tokens]].min() >= 0
            moved = generator(rates, source.num_states) @ marginal_law(toy, at(t))
            assert np.abs(slope(toy_name, at, t) - moved).max() < 1e-10


def law_after(toy_name: str, g: float, step: str, steps: int) -> np.ndarray:
    """The law of the sampler's sequences, from the project's plan and step probabilities."""
    toy, path = TOYS[toy_name], path_of(toy_name, g)
    source, conditional = flow.MaskSource(toy.vocab_size), three_term(g, toy.vocab_size)
    kernel, x = path.get_step(step), sequences(toy.vocab_size + 1, toy.length)
    plan = kernel.plan(path.scheduler, source, grids.uniform_grid(steps))
    law = np.eye(len(x))[-1]
    for i in range(steps):
        c = conditional(float(plan.time.t[i]), float(plan.time.r[i]))
        post = np.exp(logits_of(toy_name, c, "posterior", source.num_states))
        token = kernel.law({name: value[i] for name, value in plan.scalars.items()}, source)
        held = np.einsum("zvx,zv->xv", token[:, : toy.vocab_size], c)
        if step != "euler":  # the conditional marginal is exact for a frozen x_1
            after = conditional((i + 1) / steps, (steps - 1 - i) / steps)
            np.testing.assert_allclose(held, after, atol=1e-12)
        joint = np.ones((len(x), 1))
        for position in range(toy.length):
            to = np.einsum("xv,xvy->xy", post[:, position], token[x[:, position]])
            joint = (joint[:, :, None] * to[:, None, :]).reshape(len(x), -1)
        law = law @ joint
    return law


def distance(toy_name: str, law: np.ndarray) -> float:
    toy = TOYS[toy_name]
    target = np.zeros_like(law)
    target[np.ravel_multi_index(toy.data.T, (toy.vocab_size + 1,) * toy.length)] = toy.q
    return 0.5 * float(np.abs(law - target).sum())


@pytest.mark.parametrize(
    ("step", "expected", "order"),
    [("euler", {1: 2.49e-1, 4: 8.38e-2, 512: 1.59e-3}, 0.84), ("maximal", {1: 2.49e-1, 4: 7.12e-2, 512: 5.38e-4}, 1.0)],
)
def test_total_variation(step, expected, order):
    """The digits of MATH.md F(ii), toy A, g = 1/2; Euler's at N = 4 are by its definition, the table has 8.73e-2."""
    tv = {n: distance("A", law_after("A", 0.5, step, n)) for n in (1, 4, 256, 512)}
    for n, printed in expected.items():
        assert tv[n] == pytest.approx(printed, rel=6e-3)
    assert np.log2(tv[256] / tv[512]) == pytest.approx(order, abs=6e-3)


@pytest.mark.parametrize("step", ["exact", "ancestral", "maximal"])
def test_samplers_are_of_first_order(step):
    tv = {n: distance("D", law_after("D", 1.0, step, n)) for n in (16, 32)}
    assert np.log2(tv[16] / tv[32]) == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize("step", ["exact", "euler", "maximal", "ancestral"])
def test_frequencies_are_the_enumerated_law(step):
    """The compiled sampler on the exact posterior of toy A, in 4 steps."""
    from path_frequencies import check_frequencies

    path, law = path_of("A", 0.5), three_term(0.5, 3)
    tables = [logits_of("A", law(j / 4, 1 - j / 4), "posterior", 4) for j in range(4)]
    check_frequencies(path, flow.MaskSource(3), step, tables, law_after("A", 0.5, step, 4))


def test_samples_have_the_law_of_the_path():
    path, law = path_of("A", 1.0), three_term(1.0, 3)
    x_1 = jnp.tile(jnp.arange(3, dtype=jnp.int32), (30_000, 1))
    x_0 = jnp.full_like(x_1, 3)
    for t in (0.0, 0.4, 1.0):
        x_t = np.asarray(path.sample(jax.random.key(3), x_0, x_1, jnp.full(len(x_1), t)).x_t)
        for v in range(3):
            expected = law(t, 1 - t)[:, v]
            share = np.bincount(x_t[:, v], minlength=4) / len(x_t)
            np.testing.assert_allclose(share, expected, atol=4.5 * np.sqrt(0.25 / len(x_t)))
            assert not share[expected == 0].any()


def test_refuses():
    with pytest.raises(ValueError, match="noise=0"):
        path_of("A", 0.0)
    with pytest.raises(ValueError, match="accepted MaskSource"):
        flow.get_objective("generalized_kl", path=path_of("A", 0.5), source=flow.UniformSource(3))
    with pytest.raises(ValueError, match="accepted cross_entropy"):
        flow.get_objective("masked_elbo", path=path_of("A", 0.5), source=flow.MaskSource(3))
    with pytest.raises(ValueError, match="accepted exact"):
        path_of("A", 0.5).get_step("remask")
