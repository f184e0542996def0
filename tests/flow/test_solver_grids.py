"""Time grids, intermediates, and the reference's solver defects that must not come back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_jax import flow
from dfm_jax.flow.samplers import grid as grids

LINEAR = flow.CondOTScheduler()
PATH = flow.MixtureDiscreteProbPath(LINEAR)
V = 6


def flat_model(x, t):
    return jnp.zeros((*x.shape, V + 1)) + 0.0 * t[:, None, None]


def masked(batch=50, length=20):
    return jnp.full((batch, length), V, jnp.int32)


@functools.cache
def mask_solver(**options):
    return flow.MixtureDiscreteSolver(flat_model, PATH, flow.MaskSource(V), **options)


@given(h=st.floats(1e-3, 2.0), start=st.floats(0.0, 0.5), length=st.floats(0.01, 0.5))
def test_step_size_grid_ends_where_it_should(h, start, length):
    """Equal steps of h, the last one shortened; never a sliver of a step from rounding; r complements t."""
    end = start + length
    grid = grids.step_size_grid(h, start, end)
    steps = np.diff(grid.t)
    assert grid.t[0] == start and grid.t[-1] == end
    assert (steps > 0).all() and steps.max() <= h * (1 + 1e-6) + 1e-12
    np.testing.assert_allclose(steps[:-1], min(h, length) if len(steps) > 1 else steps[:-1], rtol=1e-6)
    assert steps[-1] > 1e-10 * h
    np.testing.assert_allclose(grid.t + grid.r, 1, atol=1e-15)


def test_published_grid_has_the_reference_count():
    """1 / 1024 up to 1 - 1e-3: 1023 steps; up to 1: 1024 with t and r exact from integers."""
    assert grids.step_size_grid(1 / 1024, 0.0, 1 - 1e-3).steps == 1023
    whole = grids.step_size_grid(1 / 1024)
    assert whole.steps == 1024
    assert (whole.t == np.arange(1025) / 1024).all() and (whole.r == np.arange(1024, -1, -1) / 1024).all()
    assert grids.step_size_grid(0.1).steps == 10 and grids.step_size_grid(0.3).steps == 4
    assert grids.uniform_grid(3).r[-1] == 0 and grids.step_size_grid(1 / 3).steps == 3


def test_named_grids():
    cosine, _ = grids.make_grid(LINEAR, steps=8, time_grid="cosine")
    np.testing.assert_allclose(cosine.t, 1 - np.cos(np.pi * np.arange(9) / 16), atol=1e-15)
    np.testing.assert_allclose(cosine.r, np.cos(np.pi * np.arange(9) / 16), atol=1e-15)
    for name in ("linear", "cosine_md4", "sine_squared", "geometric"):
        scheduler = flow.get_scheduler(name)
        grid, _ = grids.make_grid(scheduler, steps=8, time_grid="kappa_uniform")
        assert grid.t[0] == 0 and grid.t[-1] == 1 and grid.r[-1] == 0
        kappa = scheduler.float64(grid.t, grid.r).kappa
        np.testing.assert_allclose(kappa[1:-1], np.arange(1, 8) / 8, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine_md4", "geometric", "log_linear", "sine"])
@pytest.mark.parametrize("grid", ["uniform", "cosine", "kappa_uniform"])
def test_every_schedule_reaches_data(name, grid):
    """Also one whose kappa stops short of 1: no mask is left at t = 1."""
    path = flow.MixtureDiscreteProbPath(flow.get_scheduler(name))
    for step in ("exact", "corrector") if grid == "uniform" else ("exact",):
        plan = flow.get_step(step).plan(
            path.scheduler, flow.MaskSource(V), grids.make_grid(path.scheduler, None, 5, grid)[0]
        )
        assert plan.scalars["jump"][-1] == 1.0 or step == "corrector"
        for value in plan.scalars.values():
            assert (value >= 0).all() and (value <= 1).all()
    assert plan.index[-1] == 5


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("method", ["exact", "euler", "two_stage", "ancestral", "remask", "first_hitting"])
def test_a_grid_ending_at_a_half_leaves_half_the_masks(method):
    """The reference jumped to x_1 at the end of any grid."""
    x = np.asarray(mask_solver(step=method).sample(jax.random.key(0), masked(), time_grid=(0.0, 0.5), steps=32))
    share = (x == V).mean()
    assert abs(share - 0.5) < 0.06


def test_a_grid_can_start_late():
    """From t = 0.5 half of the masked tokens are revealed by t = 0.75."""
    x = np.asarray(mask_solver().sample(jax.random.key(0), masked(), time_grid=(0.5, 0.75), step_size=0.05))
    assert abs((x == V).mean() - 0.5) < 0.06


def test_uniform_source_at_a_half():
    """Positions that never jumped keep x_init: more than half, since x_1 may equal it."""
    source = flow.UniformSource(V + 1)
    solver = flow.MixtureDiscreteSolver(flat_model, PATH, source)
    x_init = source.sample(jax.random.key(5), (50, 20))
    x = solver.sample(jax.random.key(0), x_init, time_grid=(0.0, 0.5), steps=8)
    assert abs(float((x == x_init).mean()) - (0.5 + 0.5 / (V + 1))) < 0.06


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "times",
    [(0.0, 0.1, 0.7, 1.0), pytest.param(tuple(np.linspace(0, 1, 8)), marks=pytest.mark.slow), (0.0, 0.5, 0.50001, 1.0)],
)
def test_number_of_intermediates(times):
    """As many states as times asked for, whatever floats they are; first x_init, last the result."""
    solver, x_init = mask_solver(), masked(2, 4)
    for h in (0.1, 1 / 3, 0.07):
        states = solver.sample(jax.random.key(0), x_init, h, time_grid=times, return_intermediates=True)
        assert states.shape == (len(times), 2, 4)
        assert (states[0] == x_init).all() and (states[-1] < V).all()


@pytest.mark.slow
def test_intermediates_without_a_step_size():
    """time_grid alone is the discretisation; the reference crashed here when verbose."""
    states = mask_solver().sample(jax.random.key(0), masked(2, 4), time_grid=(0, 0.3, 1), return_intermediates=True)
    assert states.shape == (3, 2, 4)
    assert (states[-1] == mask_solver().sample(jax.random.key(0), masked(2, 4), time_grid=(0, 0.3, 1))).all()
    late = mask_solver().sample(jax.random.key(0), masked(2, 4), steps=10, return_intermediates=[1.0, 0.2, 0.2])
    assert late.shape == (3, 2, 4) and (late[1] == late[2]).all() and (late[0] < V).all()


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("c", [1.0, lambda t: 12 * t**2 * (1 - t) ** 0.25, lambda t: 10 * t**0.25 * (1 - t) ** 0.25])
@pytest.mark.parametrize("step", ["euler", "two_stage"])
def test_div_free_at_time_zero(c, step):
    """The reference divided by kappa = 0: a crash for the uniform source, an idle first step for the mask."""
    step_kernel = flow.DivFreeEuler(c) if step == "euler" else flow.TwoStage(c)
    for source in (flow.MaskSource(V), flow.UniformSource(V)):
        for name in ("linear", "cosine_md4", "sine"):
            plan = step_kernel.plan(flow.get_scheduler(name), source, grids.uniform_grid(4))
            for value in plan.scalars.values():
                assert not np.isnan(value).any()
    times = [0.25, 1.0]
    first, last = mask_solver(step=step).sample(
        jax.random.key(0), masked(), steps=4, div_free=c, return_intermediates=times
    )
    assert 0.1 < float((first != V).mean()) < 0.4 and (last < V).all()


@pytest.mark.slow
def test_the_last_step_leaves_revealed_tokens():
    """A prompt that is simply not masked survives the mask source, and the last step, on a model that disagrees."""
    x_init = masked().at[:, ::2].set(3)
    x = mask_solver(step="euler").sample(jax.random.key(0), x_init, steps=4)
    assert (x[:, ::2] == 3).all() and (x[:, 1::2] != 3).any()


def test_euler_solver_takes_the_reference_constructor():
    """(model, path, vocabulary_size, source_distribution_p): its sources, and the law needed for div_free."""

    def certain(x, t):
        return jnp.broadcast_to(jnp.where(jnp.arange(V + 1) == 2, 50.0, 0.0), (*x.shape, V + 1))

    x_init = jax.random.randint(jax.random.key(0), (4, 6), 0, V + 1, jnp.int32)
    mask_law, ramp = np.eye(V + 1)[V], np.arange(1.0, V + 2)
    for p in (None, np.full(V + 1, 1 / (V + 1)), ramp / ramp.sum()):
        solver = flow.MixtureDiscreteEulerSolver(certain, PATH, V + 1, p)
        assert (solver.sample(jax.random.key(1), x_init, 0.1) == 2).all()
    solver = flow.MixtureDiscreteEulerSolver(certain, PATH, V + 1, jnp.asarray(mask_law, jnp.float32))
    x = solver.sample(jax.random.key(1), x_init, step_size=0.1, div_free=1.0)
    assert solver.source == flow.MaskSource(V) and (x < V).all()
    assert (solver.sample(jax.random.key(1), x_init, step_size=0.1, div_free=jnp.float32(1.0)) == x).all()
    with pytest.raises(ValueError, match="source_distribution_p = None"):
        flow.MixtureDiscreteEulerSolver(certain, PATH, V + 1).sample(jax.random.key(1), x_init, 0.1, div_free=1.0)
    with pytest.raises(ValueError, match="source_distribution_p of shape"):
        flow.MixtureDiscreteEulerSolver(certain, PATH, V + 1, np.ones(3) / 3)


BAD = [
    ({}, {"time_grid": (0.0, 0.0, 0.5, 1.0)}, "of which only those inside"),
    ({}, {"time_grid": (0.5, 0.2)}, "that do not decrease"),
    ({}, {"time_grid": (0.5,)}, "at least two times"),
    ({}, {"time_grid": (-0.1, 1.0)}, r"in \[0, 1\]"),
    ({}, {"time_grid": (0.0, float("nan"), 1.0)}, "that do not decrease"),
    ({}, {"time_grid": "poly", "steps": 4}, "time_grid = 'poly'"),
    ({}, {"time_grid": "cosine"}, "steps = None"),
    ({}, {}, "steps = None"),
    ({}, {"steps": 0}, "steps = 0"),
    ({}, {"steps": 2.5}, "steps = 2.5"),
    ({}, {"step_size": 0.0}, "step_size = 0"),
    ({}, {"step_size": 0.1, "steps": 3}, "expected one of them"),
    ({}, {"steps": 4, "return_intermediates": [1.5]}, "intermediate times"),
    ({}, {"steps": 4, "div_free": 1.0}, "div_free = 1.0"),
    ({"step": "euler"}, {"steps": 4, "div_free": -1.0}, "div_free = -1"),
    ({"step": "two_stage"}, {"steps": 4, "div_free": lambda t: t - 0.5}, "expected c >= 0"),
    ({"step": "first_hitting"}, {"steps": 4, "div_free": 1.0}, "div_free = 1.0: expected 0 unless step is 'euler'"),
    ({}, {"steps": 4, "fixed": jnp.zeros((3, 3), bool)}, "fixed of shape"),
]


@pytest.mark.parametrize(("options", "call", "line"), BAD)
def test_bad_calls(options, call, line):
    with pytest.raises(ValueError, match=line):
        mask_solver(**options).sample(jax.random.key(0), masked(2, 3), **call)


def test_bad_inputs_and_steps():
    with pytest.raises(ValueError, match="x_init of shape"):
        mask_solver().sample(jax.random.key(0), jnp.zeros((3,), jnp.int32), steps=4)
    with pytest.raises(ValueError, match="x_init of shape"):
        mask_solver().sample(jax.random.key(0), jnp.zeros((3, 2)), steps=4)
    with pytest.raises(ValueError, match="key of shape"):
        mask_solver().sample(jax.random.split(jax.random.key(0), 3), masked(2, 3), steps=4)
    with pytest.raises(ValueError, match="key of shape"):
        mask_solver().sample(jax.random.PRNGKey(0), masked(2, 3), steps=4)
    with pytest.raises(ValueError, match="step = 'heun': expected exact"):
        mask_solver(step="heun")
    with pytest.raises(ValueError, match="group_size = 0"):
        mask_solver(group_size=0)
    uniform = flow.UniformSource(V + 1)
    for step in ("first_hitting", "remask"):
        with pytest.raises(ValueError, match="mask source"):
            flow.MixtureDiscreteSolver(flat_model, PATH, uniform, step=step)
    for step in (flow.FirstHitting(), flow.Thinning()):  # chains of the mixture path
        with pytest.raises(ValueError, match="expected the mixture path only"):
            three_term = flow.ThreeTermProbPath(LINEAR, V)
            flow.MixtureDiscreteSolver(flat_model, three_term, flow.MaskSource(V), step=step)
    ramp = flow.CategoricalSource(np.full(V + 1, 1 / (V + 1)))
    with pytest.raises(ValueError, match="mask or uniform"):
        flow.MixtureDiscreteSolver(flat_model, PATH, ramp, step="multiflow")
    for name, options, line in (
        ("multiflow", {"eta": -1.0}, "eta = -1"),
        ("remask", {"schedule": "loop"}, "schedule = 'loop'"),
        ("remask", {"eta": 2.0}, "eta = 2"),
        ("corrector", {"strength": 0.0}, "strength = 0"),
        ("corrector", {"iterations": -1}, "iterations = -1"),
        ("exact", {"eta": 1.0}, "options"),
        ("first_hitting", {"eta": 1.0}, "options"),
        ("thinning", {"delta": 0.0}, "delta = 0.0: expected 0 < delta <= 1"),
    ):
        with pytest.raises(ValueError, match=line):
            flow.get_step(name, **options)
    for written, line in (
        ("two_stage:div_free", "NAME=VALUE"),
        ("two_stage:eta=1", "options"),
        ("no:a=1", "'no'"),
        ("two_stage:div_free=abc", "div_free = 'abc': expected a number"),
        ("remask:schedule=1", "schedule = 1: expected a word"),
    ):
        with pytest.raises(ValueError, match=line):
            flow.get_step(written)
    with pytest.raises(ValueError, match="logits of shape"):
        narrow = flow.MixtureDiscreteSolver(lambda x, t: jnp.zeros((*x.shape, V)), PATH, flow.MaskSource(V))
        narrow.sample(jax.random.key(0), masked(2, 3), steps=2)
    with pytest.raises(ValueError, match="expected c >= 0"):
        flow.adaptive_grid(0.1, LINEAR, -1.0)


def test_options_may_follow_a_step_name():
    assert flow.get_step("two_stage:div_free=0.5") == flow.get_step("two_stage", div_free=0.5)
    corrector = flow.get_step("corrector", iterations=2, strength=0.3)
    assert flow.get_step("corrector:iterations=2,strength=0.3") == corrector
    assert flow.get_step("remask:schedule=cap,eta=0.1") == flow.get_step("remask", schedule="cap", eta=0.1)


def test_a_grid_may_hold_a_time_with_every_step():
    """No scalar is 0 / 0 there, on any path; steps that refuse a source are left out."""
    cat = flow.CategoricalSource([0.1, 0.2, 0.3, 0.4])
    mask, uniform, clock = flow.MaskSource(4), flow.UniformSource(4), flow.get_scheduler("cosine_md4")
    mixture, planned = flow.MixtureDiscreteProbPath(clock), set()
    pairs = [(mixture, source) for source in (mask, uniform, cat)]
    pairs += [(flow.ThreeTermProbPath(clock, 4, 0.5), mask), (flow.GenMD4ProbPath(clock, 4, np.arange(1.0, 5)), mask)]
    pairs += [(flow.MetricProbPath(clock, np.linspace(-1, 1, 4)[:, None]), uniform)]
    pairs += [(flow.KineticOptimalProbPath(clock, cat), cat)]
    names = [
        "exact",
        "euler",
        "two_stage:div_free=1",
        "div_free_euler:div_free=1",
        "corrector",
        "multiflow",
        "ancestral",
    ]
    names += ["psi", "psi:mode=cap", "psi:mode=rescale", "remask", "remask:schedule=cap", "kinetic_optimal", "maximal"]
    for path, source in pairs:
        for name in names:
            try:
                plan = path.get_step(name).plan(clock, source, grids.explicit_grid([0, 0.3, 0.5, 0.5, 0.5, 0.9, 1]))
            except ValueError:
                continue
            planned.add((type(path), name))
            assert not any(np.isnan(value).any() for value in (*plan.scalars.values(), plan.jumps)), (
                path,
                source,
                name,
            )
    assert len(planned) > 18
