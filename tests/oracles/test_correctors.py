"""Correctors: the printed values by enumeration, invariance, and the project's rounds from every state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import correcting, path_laws, toys, transitions
from oracles.test_sampler_frequencies import tabulated

from dfm_jax import flow

# (toy, source, kind) -> TV at N = 4 and 16 for K = 1, K = 3, rho = .1, rho = .5.
PRINTED = {
    ("A", "uniform", "resample"): ((.064426, .010638), (.055596, .007668), (.079031, .017131), (.072593, .019955)),
    ("A", "uniform", "gibbs"): ((.052176, .004670), (.052176, .004670), (.076299, .016310), (.078143, .055921)),
    ("A", "mask", "resample"): ((.034533, .004576), (.022964, .002772), (.055448, .010954), (.042912, .013135)),
    ("A", "mask", "gibbs"): ((.015564, .000973), (.015564, .000973), (.048661, .011907), (.059824, .071191)),
    ("D", "uniform", "resample"): ((.136160, .024356), (.119661, .018375), (.152940, .033284), (.141655, .035395)),
    ("D", "uniform", "gibbs"): ((.124307, .014768), (.112392, .012791), (.150023, .032785), (.151943, .093281)),
    ("D", "mask", "resample"): ((.087704, .012083), (.056364, .007236), (.119500, .024593), (.091665, .030336)),
    ("D", "mask", "gibbs"): ((.049840, .003237), (.035574, .002417), (.105250, .025754), (.118813, .135889)),
}  # fmt: skip
PLAIN = {
    ("A", "uniform"): (0.083303, 0.020228),
    ("A", "mask"): (0.062256, 0.015564),
    ("D", "uniform"): (0.160706, 0.038856),
    ("D", "mask"): (0.134355, 0.035276),
}

LINEAR = flow.CondOTScheduler()


@pytest.mark.parametrize(("toy", "source", "kind"), PRINTED)
def test_printed_values(toy, source, kind):
    one = lambda kappa: correcting.one_site(kind, toy, source, kappa)  # noqa: E731
    correctors = [
        one,
        lambda kappa: np.linalg.matrix_power(one(kappa), 3),
        lambda kappa: correcting.by_rate(kind, toy, source, kappa, 0.1),
        lambda kappa: correcting.by_rate(kind, toy, source, kappa, 0.5),
    ]
    for column, steps in enumerate((4, 16)):
        plain = transitions.distance(correcting.run(toy, source, steps), toy, source)
        assert plain == pytest.approx(PLAIN[toy, source][column], abs=1e-6)
        for correct, printed in zip(correctors, PRINTED[toy, source, kind], strict=True):
            tv = transitions.distance(correcting.run(toy, source, steps, correct), toy, source)
            assert tv == pytest.approx(printed[column], abs=1e-6)


@pytest.mark.parametrize(("toy", "source", "kind"), PRINTED)
def test_one_site_leaves_the_law_at_t_as_it_is(toy, source, kind):
    conditional = correcting.tables(toy, source, 0.4)[1]
    law = toys.marginal_law(toys.TOYS[toy], conditional)
    np.testing.assert_allclose(law @ correcting.one_site(kind, toy, source, 0.4), law, atol=1e-15)


class Stay(flow.Step):
    """A step that changes nothing, so that what a corrector does is seen alone."""

    needs = flow.Needs.NOTHING
    words, fresh = 1, "none"

    def plan(self, scheduler, source, grid):
        return flow.Exact().plan(scheduler, source, grid)

    def transition(self, row, z, x_1, u, y, source):
        return z


def excess(counts, law):
    """(chi-square - its mean) / its standard deviation over rows of multinomial counts."""
    expected = law * counts.sum(-1, keepdims=True)
    rare = expected < 8
    observed = np.concatenate([np.where(rare, 0, counts), np.where(rare, counts, 0).sum(-1, keepdims=True)], -1)
    expected = np.concatenate([np.where(rare, 0, expected), np.where(rare, expected, 0).sum(-1, keepdims=True)], -1)
    assert not observed[expected <= 1e-9].any()
    used = expected > 1e-9
    freedom = (used.sum(-1) - 1).sum()
    return ((observed - expected)[used] ** 2 / expected[used]).sum() / np.sqrt(2 * freedom) - np.sqrt(freedom / 2)


def one_visit(toy_name, source_name, corrector, *, kappa=0.4, kappas=(0.4,), repeats=2000, fixed=None):
    """Counts (n, n) of where a corrector leads from every state at t = kappa."""
    toy, source = toys.TOYS[toy_name], flow.get_source(source_name, toys.TOYS[toy_name].vocab_size)
    size, states = source.num_states, toys.sequences(source.num_states, toy.length)
    path = flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
    solver = flow.Solver(
        tabulated(toy_name, source_name, kappas), path, source, step=Stay(), corrector=corrector, group_size=1 << 14
    )
    x = jnp.asarray(np.repeat(states, repeats, 0))
    fixed = None if fixed is None else jnp.broadcast_to(jnp.asarray(fixed), x.shape)
    after, evaluations = solver.sample(
        jax.random.key(3), x, time_grid=(0.2, kappa, 1.0), fixed=fixed, return_evaluations=True
    )
    counts = np.zeros((len(states), len(states)))
    index = [np.ravel_multi_index(np.asarray(a).T, (size,) * toy.length) for a in (x, after)]
    np.add.at(counts, tuple(index), 1)
    return counts, evaluations


ROUNDS = [
    ("A", "uniform", "gibbs", "sites=1,rounds=3"),
    ("A", "mask", "gibbs", "rate=0.5"),
    ("A", "mask", "resample", "sites=1"),
    ("A", "uniform", "resample", "rate=0.5"),
]
MORE = [
    ("A", "mask", "gibbs", "sites=1,rounds=3"),
    ("A", "mask", "resample", "rate=0.5"),
    ("A", "uniform", "gibbs", "rate=0.5"),
    ("D", "mask", "gibbs", "sites=1"),
    ("D", "uniform", "gibbs", "rate=0.1"),
    ("D", "uniform", "resample", "sites=1"),
]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("toy", "source", "kind", "where"), [*ROUNDS, *(pytest.param(*c, marks=pytest.mark.slow) for c in MORE)]
)
def test_rounds_have_the_law_of_their_definition(toy, source, kind, where):
    options = dict(part.split("=") for part in where.split(","))
    if "rate" in options:
        law = correcting.by_rate(kind, toy, source, 0.4, float(options["rate"]))
    else:
        law = np.linalg.matrix_power(correcting.one_site(kind, toy, source, 0.4), int(options.get("rounds", 1)))
    counts, evaluations = one_visit(toy, source, f"{kind}:{where}")
    assert excess(counts, law) < 4.5
    assert np.asarray(evaluations.trunk).max() <= int(options.get("rounds", 1))
    # A law that is a little off is seen.
    other = correcting.by_rate(kind, toy, source, 0.4, 0.4) if "rate" in options else law @ law
    assert excess(counts, 0.5 * law + 0.5 * other) > 4.5


def test_forward_backward_is_the_old_step():
    """Rounds of 'forward_backward' after exact steps: the kernels of the step called 'corrector'."""
    v = 0.4 - 0.5 * (0.4 - 0.2)
    law = np.eye(9)
    for kernel in (transitions.noise(0.4, v), transitions.denoise(v, 0.4)):
        law = transitions.advance(law, "A", "uniform", v, kernel)
    counts, _ = one_visit("A", "uniform", "forward_backward:strength=0.5", kappas=(v,))
    assert excess(counts, law) < 4.5


@pytest.mark.slow
@pytest.mark.parametrize("source_name", ["mask", "uniform"])
def test_samples_with_rounds_have_the_enumerated_law(source_name):
    """Toy A, 4 exact steps with one gibbs update after each but the last; each costs one evaluation at most."""
    source, n = flow.get_source(source_name, 3), 40_000
    law = correcting.run("A", source_name, 4, lambda kappa: correcting.one_site("gibbs", "A", source_name, kappa))
    solver = flow.MixtureDiscreteSolver(
        tabulated("A", source_name, (0, 0.25, 0.5, 0.75)), flow.MixtureDiscreteProbPath(LINEAR), source,
        corrector="gibbs:sites=1", group_size=1 << 14,
    )  # fmt: skip
    x_0 = source.sample(jax.random.key(1), (n, 2))
    x, evaluations = solver.sample(jax.random.key(2), x_0, steps=4, return_evaluations=True)
    counts = np.bincount(np.asarray(x)[:, 0] * source.num_states + np.asarray(x)[:, 1], minlength=len(law))
    assert excess(counts[None].astype(float), law[None]) < 4.5
    assert excess(counts[None].astype(float), correcting.run("A", source_name, 4)[None]) > 10
    assert 3 < np.asarray(evaluations.trunk).max() <= 7


@pytest.mark.slow
@pytest.mark.parametrize("corrector", ["gibbs:sites=1,rounds=3", "resample:sites=1,rounds=3"])
@pytest.mark.parametrize("name", ["three_term", "genmd4", "kinetic_optimal"])
def test_other_paths_keep_their_law(name, corrector):
    """p_t of toy A after rounds at t = 0.4, on paths other than the mixture. Those that 'gibbs' refuses keep out."""
    law, mask = np.arange(1.0, 4.0) / 6, flow.MaskSource(3)
    path, of_token, source = {
        "three_term": lambda: (flow.ThreeTermProbPath(LINEAR, 3, 0.5), path_laws.three_term(0.5, 3), mask),
        "genmd4": lambda: (flow.GenMD4ProbPath(LINEAR, 3, law * 3), path_laws.genmd4(law * 3), mask),
        "kinetic_optimal": lambda: (
            flow.KineticOptimalProbPath(LINEAR, flow.CategoricalSource(law)), path_laws.kinetic_optimal(law),
            flow.CategoricalSource(law),
        ),
    }[name]()  # fmt: skip
    if name != "three_term" and corrector.startswith("gibbs"):
        with pytest.raises(ValueError, match="corrector = 'gibbs': expected a path with one schedule"):
            flow.Solver(lambda x, t: x, path, source, step=Stay(), corrector=corrector)
        return
    conditional = of_token(0.4, 0.6)
    size, repeats = source.num_states, 60_000
    post = np.pad(toys.posterior(toys.TOYS["A"], conditional), ((0, 0), (0, 0), (0, size - 3)))
    with np.errstate(divide="ignore"):
        table = jnp.asarray(np.log(post), jnp.float32)
    before = toys.marginal_law(toys.TOYS["A"], conditional)
    states = np.random.default_rng(0).choice(size**2, repeats, p=before)
    x = jnp.asarray(np.stack(np.unravel_index(states, (size, size)), -1), jnp.int32)
    solver = flow.Solver(
        lambda x, t: table[x[:, 0] * size + x[:, 1]], path, source, step=Stay(), corrector=corrector,
        group_size=1 << 14,
    )  # fmt: skip
    after = np.asarray(solver.sample(jax.random.key(3), x, time_grid=(0.2, 0.4, 1.0)))
    assert (after != np.asarray(x)).any(-1).mean() > 0.2
    counts = np.bincount(after[:, 0] * size + after[:, 1], minlength=size**2)
    assert excess(counts[None].astype(float), before[None]) < 4.5


def test_fixed_positions_do_not_change():
    """The free one of two gets its conditional law."""
    counts, _ = one_visit("A", "uniform", "gibbs:sites=2", fixed=[[True, False]])
    states, *_ = correcting.tables("A", "uniform", 0.4)
    moved = correcting.by_site("gibbs", "A", "uniform", 0.4)
    law = np.where(states[:, None, 0] == states[None, :, 0], moved[:, 1][:, states[:, 1]], 0.0)
    assert excess(counts, law) < 4.5
