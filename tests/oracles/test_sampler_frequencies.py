"""The compiled samplers against enumerated laws: frequencies of many sequences, judged by a chi-square.

Keys are fixed, so each bound is checked once and for all: a statistic more than 4.5 standard deviations above its
mean (about 1e-5 by chance) is a wrong law, not bad luck.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import toys, transitions
from oracles.test_solver_transitions import CASES, SCHEDULERS, exact

from dfm_jax import flow

SEQUENCES = 40_000


def excess(counts, law):
    """(chi-square - its mean) / its standard deviation, categories with less than 8 expected counts taken
    together."""
    expected = law * counts.sum()
    rare = expected < 8
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert not observed[expected <= 0].any()
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = max(len(observed) - 1, 1)
    return ((observed - expected) ** 2 / expected).sum() / np.sqrt(2 * freedom) - np.sqrt(freedom / 2)


def tabulated(toy_name, source, kappas):
    """The exact posterior as a model: float32 logits of the tables at `kappas`; time picks the nearest one."""
    kappas = np.unique(np.round(kappas, 12))
    tables = np.stack([transitions.posterior(toy_name, source, float(k)) for k in kappas])
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.log(tables), jnp.float32)
    states, length = tables.shape[-1], tables.shape[-2]
    weights = states ** np.arange(length - 1, -1, -1)

    def model(x, t):
        row = (x * jnp.asarray(weights, jnp.int32)[None]).sum(-1)
        nearest = jnp.abs(jnp.asarray(kappas, jnp.float32)[None] - t[:, None]).argmin(-1)
        return logits[nearest, row]

    return model


def counts_of(x, states):
    return np.bincount(np.ravel_multi_index(np.asarray(x).T, (states,) * x.shape[1]), minlength=states ** x.shape[1])


def sequence_counts(solver, source, length, **options):
    x_init = source.sample(jax.random.key(1), (SEQUENCES, length))
    return counts_of(solver.sample(jax.random.key(2), x_init, **options), source.num_states)


CHOSEN = [
    case
    for case in CASES
    if case.name
    in ("mask-exact", "mask-remask-fb", "uniform-exact", "uniform-ancestral", "uniform-corrector", "uniform-div_free-1")
]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[] if "exact" in c.name else [pytest.mark.slow]) for c in CHOSEN]
)
def test_frequencies_are_the_enumerated_law(case):
    """Toy A in 4 steps, where the samplers differ most, on the exact posterior."""
    stages = case.stages(4)
    law = transitions.run("A", case.source, stages)
    source = flow.get_source(case.source, 3)
    model = tabulated("A", case.source, [kappa for kappa, _ in stages])
    path = flow.MixtureDiscreteProbPath(SCHEDULERS["linear"])
    solver = flow.MixtureDiscreteSolver(model, path, source, step=case.step, group_size=1 << 15)
    counts = sequence_counts(solver, source, 2, steps=4)
    assert excess(counts, law) < 4.5
    if case.source == "mask":
        assert (counts.reshape(4, 4)[3] == 0).all()
        assert (counts.reshape(4, 4)[:, 3] == 0).all()


@pytest.mark.slow
def test_the_chi_square_sees_a_wrong_law():
    """The law at 3 steps told from the one at 4 and from that of another method: the bound has teeth."""
    path = flow.MixtureDiscreteProbPath(SCHEDULERS["linear"])
    by_name = {case.name: case for case in CASES}
    for source_name, other in (("mask", "mask-remask-fb"), ("uniform", "uniform-multiflow-1")):
        model = tabulated("A", source_name, [0, 1 / 4, 1 / 2, 3 / 4])
        source = flow.get_source(source_name, 3)
        solver = flow.MixtureDiscreteSolver(model, path, source, group_size=1 << 15)
        counts = sequence_counts(solver, source, 2, steps=4)
        assert excess(counts, transitions.run("A", source_name, exact("linear")(4))) < 4.5
        assert excess(counts, transitions.run("A", source_name, exact("linear")(3))) > 10
        assert excess(counts, transitions.run("A", source_name, by_name[other].stages(4))) > 10


@pytest.mark.slow
def test_first_hitting_frequencies():
    """Toy D without discretisation error, from the whole path and stopped at t = 0.6, where p_t is known."""
    toy, source = toys.TOYS["D"], flow.MaskSource(3)
    model = tabulated("D", "mask", [0.5])
    path = flow.MixtureDiscreteProbPath(SCHEDULERS["square"])
    solver = flow.MixtureDiscreteSolver(model, path, source, step="first_hitting")
    p = toys.source_law("mask", 3)
    for end in (1.0, 0.6):
        law = toys.marginal_law(toy, toys.mixture(end**2, 1 - end**2, p, 3))
        counts = sequence_counts(solver, source, 3, time_grid=(0.0, end))
        assert excess(counts, law) < 4.5


@pytest.mark.slow
def test_first_hitting_intermediates_are_exact():
    """p_t at the times asked for, from one run."""
    toy, source = toys.TOYS["A"], flow.MaskSource(3)
    path = flow.MixtureDiscreteProbPath(SCHEDULERS["linear"])
    solver = flow.MixtureDiscreteSolver(tabulated("A", "mask", [0.5]), path, source, step="first_hitting")
    x_init = source.sample(jax.random.key(1), (SEQUENCES, 2))
    times = (0.0, 0.25, 0.5, 1.0)
    states = solver.sample(jax.random.key(5), x_init, steps=4, return_intermediates=times)
    assert states.shape == (4, SEQUENCES, 2)
    p = toys.source_law("mask", 3)
    for time, x in zip(times, states, strict=True):
        assert excess(counts_of(x, 4), toys.marginal_law(toy, toys.mixture(time, 1 - time, p, 3))) < 4.5


@pytest.mark.slow
def test_thinning_frequencies():
    """The chain of a posterior that is held on bins of kappa, by the master equation bin by bin; then the step from
    sigma = delta, at the end and on the way to it."""
    kappas, source, delta = np.linspace(0.0, 0.9, 10), flow.UniformSource(3), 0.1
    law = transitions.initial("A", "uniform")
    for kappa in kappas:
        start, stop = min(1.0, 1.05 - kappa), max(delta, 0.95 - kappa)
        law = transitions.events(law, "A", "uniform", kappa, np.log(start / stop))
    model = tabulated("A", "uniform", kappas)
    path = flow.MixtureDiscreteProbPath(SCHEDULERS["linear"])
    solver = flow.MixtureDiscreteSolver(model, path, source, step=f"thinning:delta={delta}")
    x_init = source.sample(jax.random.key(1), (SEQUENCES, 2))
    states = solver.sample(jax.random.key(7), x_init, steps=40, return_intermediates=(0.9, 0.95, 1.0))
    for end, x in zip((0.9, 0.95, 1.0), states, strict=True):
        expected = transitions.advance(law, "A", "uniform", kappas[-1], transitions.denoise(0.9, end))
        assert excess(counts_of(x, 3), expected) < 4.5
    early = solver.sample(jax.random.key(7), x_init, time_grid=(0.0, 0.9))
    assert (early == states[0]).all()  # stopped before delta: no step of frozen posteriors


@pytest.mark.slow
def test_another_schedule_at_sampling():
    """Trained on t^2, sampled on sin^2: the network sees t' = kappa_train^{-1}(kappa_sample(t)), the law is that
    of sin^2."""
    stages = exact("sine_squared")(3)
    source = flow.UniformSource(3)
    by_kappa = tabulated("A", "uniform", [kappa for kappa, _ in stages])
    path = flow.MixtureDiscreteProbPath(SCHEDULERS["square"])
    scheduler = SCHEDULERS["sine_squared"]
    solver = flow.MixtureDiscreteSolver(
        lambda x, t: by_kappa(x, t**2), path, source, scheduler=scheduler, group_size=1 << 15
    )
    counts = sequence_counts(solver, source, 2, steps=3)
    assert excess(counts, transitions.run("A", "uniform", stages)) < 4.5
