"""t = 0 and t = 1 themselves: slopes and rates that are infinite there never meet a 0 as NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow
from dfm_jax.flow.samplers import grid as grids

V = 4
FINITE_SLOPES = {
    **{name: flow.get_scheduler(name, vocab_size=5) for name in flow.SCHEDULERS},
    "t^2": flow.PolynomialConvexScheduler(2),
    "r^3": flow.OneMinusPowerScheduler(3),
}
CLOCKS = {
    "linear": flow.CondOTScheduler(),
    "t^0.5": flow.PolynomialConvexScheduler(0.5),
    "r^0.5": flow.OneMinusPowerScheduler(0.5),
}
RAMP = flow.CategoricalSource(np.arange(1, V + 1) / 10)
EMBEDDINGS = np.random.default_rng(0).normal(size=(V, 3))


def path_on(name: str, clock: flow.Scheduler) -> flow.GeneralPath:
    return {
        "three_term": lambda: flow.ThreeTermProbPath(clock, V, 0.5),
        "metric": lambda: flow.MetricProbPath(clock, EMBEDDINGS),
        "kinetic_optimal": lambda: flow.KineticOptimalProbPath(clock, RAMP),
        "genmd4": lambda: flow.GenMD4ProbPath(clock, V, np.linspace(0.5, 2, V)),
    }[name]()


def losses(path, source, t, names, parametrization):
    """Name -> (losses (2, 3), gradient in the logits) at x_t drawn at t."""
    x_1 = jnp.array([[0, 1, 2], [3, 2, 1]], jnp.int32)
    x_t = path.sample(jax.random.key(1), source.sample(jax.random.key(0), x_1.shape), x_1, t).x_t
    logits = jax.random.normal(jax.random.key(2), (*x_1.shape, source.num_states))
    for name in names:
        objective = flow.get_objective(name, path=path, source=source, parametrization=parametrization)

        def total(logits, objective=objective):
            loss = flow.loss_from_logits(objective, logits, x_1, x_t, t)
            return loss.sum(), loss

        (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(logits)
        yield name, loss, gradient


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("name", FINITE_SLOPES)
def test_schedulers_have_their_slope_as_gradient_at_both_ends(name):
    scheduler = FINITE_SLOPES[name]
    for t in (0.0, 1.0):
        slope = float(scheduler(t).d_alpha_t)
        assert float(jax.grad(lambda t: scheduler(t).alpha_t)(t)) == pytest.approx(slope, rel=1e-4, abs=1e-5)
        assert float(jax.grad(lambda t: scheduler(t).sigma_t)(t)) == pytest.approx(-slope, rel=1e-4, abs=1e-5)
        assert jnp.isfinite(jax.grad(lambda t: scheduler(t).d_alpha_t)(t))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("clock", ["t^0.5", "r^0.5"])
@pytest.mark.parametrize("source", [flow.MaskSource(V), flow.UniformSource(V), flow.UniformSource(1), RAMP])
def test_infinite_slopes_of_the_mixture(clock, source):
    path = flow.MixtureDiscreteProbPath(CLOCKS[clock])
    names = ("cross_entropy", "generalized_kl", "time_reversal") + ("masked_elbo",) * (source.mask_id is not None)
    for end in (0.0, 1.0):
        for parametrization in ("posterior", "leave_one_out"):
            t = jnp.full((2,), end)
            if source.vocab_size == 1:  # nothing can be lost
                x = jnp.zeros((2, 3), jnp.int32)
                objective = flow.TimeReversal(path, source, parametrization)
                assert (flow.loss_from_logits(objective, jnp.zeros((2, 3, 1)), x, x, t) == 0).all()
                continue
            for name, loss, gradient in losses(path, source, t, names, parametrization):
                assert not jnp.isnan(loss).any() and jnp.isfinite(gradient).all(), (name, parametrization, end)


@pytest.mark.slow
def test_a_prompt_token_that_the_source_never_draws():
    """At t = 0 it has no law, and no loss; a gradient that is not finite would pass through `uncharged`."""
    source, path = flow.CategoricalSource([0.0, 0.5, 0.5, 0.0]), flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
    x_1 = jnp.array([[0, 1, 3]], jnp.int32)
    for name in ("cross_entropy", "generalized_kl", "time_reversal"):
        objective = flow.get_objective(name, path=path, source=source, parametrization="leave_one_out")
        for t in (0.0, 1e-7, 1.0):
            gradient = jax.grad(
                lambda logits, objective=objective, t=t: flow.uncharged(
                    flow.loss_from_logits(objective, logits, x_1, x_1, t), jnp.array([[True, False, True]])
                ).sum()
            )(jax.random.normal(jax.random.key(0), (1, 3, V)))
            assert jnp.isfinite(gradient).all(), (name, t)
            assert (gradient[:, ::2] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("name", ["three_term", "metric", "kinetic_optimal", "genmd4"])
def test_other_paths(name, clock):
    path = path_on(name, CLOCKS[clock])
    names = ("cross_entropy", *path.bound_names)
    for end in (0.0, 1.0):
        t = jnp.full((2,), end)
        velocity = path.posterior_to_velocity(jnp.zeros((2, 3, path.own_source().num_states)), jnp.ones((2, 3), int), t)
        assert not jnp.isnan(velocity).any()
        for parametrization in ("posterior",) if name == "metric" else ("posterior", "leave_one_out"):
            for loss_name, loss, gradient in losses(path, path.own_source(), t, names, parametrization):
                assert not jnp.isnan(loss).any() and jnp.isfinite(gradient).all(), (loss_name, parametrization, end)
                if clock == "linear" and parametrization == "leave_one_out":
                    assert jnp.isfinite(loss).all(), (loss_name, end)


@pytest.mark.parametrize("step", [flow.Euler(), flow.DivFreeEuler(1.0), flow.Multiflow(0.0)])
def test_an_infinite_rate_at_the_start_does_not_reveal_everything(step):
    """t^0.5 jumps at an infinite rate at t = 0, of a finite integral: the first of 16 steps takes a quarter."""
    plan = step.plan(flow.PolynomialConvexScheduler(0.5), flow.MaskSource(V), grids.uniform_grid(16))
    if isinstance(step, flow.Multiflow):  # min(1, h lambda), not 1 - exp(-h lambda)
        assert plan.jumps[0] == pytest.approx(-np.log(0.75))
    else:
        assert plan.jumps[0] == pytest.approx(0.25)
