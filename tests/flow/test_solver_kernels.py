"""One step of every sampler: stated probabilities, realised frequencies, and the dense form of the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import transitions

from dfm_jax import flow
from dfm_jax.flow import categorical
from dfm_jax.flow.samplers import grid as grids
from dfm_jax.flow.samplers.fresh import fresh_tokens

MASK, UNIFORM = flow.MaskSource(4), flow.UniformSource(5)
RAMP = flow.CategoricalSource(np.arange(1.0, 6.0) / 15.0)
SOURCES = {"mask": MASK, "uniform": UNIFORM, "ramp": RAMP}
LAWS = {"mask": np.eye(5)[4], "uniform": np.full(5, 0.2), "ramp": np.arange(1.0, 6.0) / 15.0}
LINEAR = flow.CondOTScheduler()
STEPS = {
    "exact": flow.Exact(),
    "euler": flow.Euler(),
    "two_stage": flow.TwoStage(2.0),
    "corrector": flow.Corrector(1, 0.5),
    "div_free": flow.DivFreeEuler(2.0),
    "multiflow": flow.Multiflow(0.5),
    "ancestral": flow.Ancestral(),
    "remask": flow.Remask("cap", 0.3),
    "psi": flow.Psi("constant", 0.4),
}
PAIRS = [
    (name, source)
    for name in STEPS
    for source in SOURCES
    if not (name == "remask" and source != "mask") and not (name == "multiflow" and source == "ramp")
]


def excess(observed, expected):
    """(chi-square - its mean) / its standard deviation over rows of multinomial counts; 4.5 is about 1e-5."""
    positive = expected > 0
    assert not observed[~positive].any()
    freedom = (positive.sum(-1) - 1).sum()
    value = ((observed - expected)[positive] ** 2 / expected[positive]).sum()
    return (value - freedom) / np.sqrt(2 * max(freedom, 1))


def rows_of(step, source, times):
    plan = step.plan(LINEAR, source, grids.explicit_grid(times))
    return plan, [{name: value[i] for name, value in plan.scalars.items()} for i in range(len(plan.index))]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("name", "source_name"), PAIRS)
def test_moves_have_the_stated_law(name, source_name):
    """Every (z, x_1) that can occur, 40 000 times: frequencies of decide and move against `law`, first, inner,
    last step."""
    step, source, repeats = STEPS[name], SOURCES[source_name], 20_000
    states = source.num_states
    z, x_1 = (v.reshape(-1) for v in np.meshgrid(np.arange(states), np.arange(states), indexing="ij"))
    keep = (x_1 != 4) & ((z == 4) | (z == x_1)) if source_name == "mask" else np.full(z.shape, True)
    z, x_1 = z[keep], x_1[keep]
    big_z, big_x_1 = (jnp.asarray(np.repeat(v, repeats), jnp.int32) for v in (z, x_1))
    _, rows = rows_of(step, source, (0.0, 0.3, 0.55, 1.0))
    for number, row in enumerate(rows):
        event_key, fresh_key = jax.random.split(jax.random.fold_in(jax.random.key(3), number))
        u = categorical.uniform(jax.random.bits(event_key, (step.words, len(big_z)), jnp.uint32))
        y = fresh_tokens(step.fresh, source, fresh_key[None], big_z[None])[0]
        row32 = {key: jnp.float32(value) for key, value in row.items()}
        x = step.transition(row32, big_z, big_x_1, u, y, source)
        counts = np.stack([np.bincount(r, minlength=states) for r in np.asarray(x).reshape(len(z), repeats)])
        law = step.transition_matrix(row, source)[z, x_1]
        if name == "multiflow" and number == 0 and source_name == "mask":
            # At t = 0 no token is revealed: the rows z = x_1 have no meaning there.
            counts, law = counts[z == 4], law[z == 4]
        assert excess(counts, law * repeats) < 4.5
        # Where decide says no, x_1 must not matter.
        idle = ~step.needs_x_1(row32, big_z, u, source)
        if source_name == "mask":
            idle &= big_z == 4
        other = step.transition(row32, big_z, (big_x_1 + 1) % 4, u, y, source)
        assert not (np.asarray(idle) & (np.asarray(other) != np.asarray(x)))[np.asarray(big_z == 4)].any()
        if source_name != "mask":
            assert not (np.asarray(idle) & (np.asarray(other) != np.asarray(x))).any()


@pytest.mark.parametrize(("name", "source_name"), PAIRS)
@given(start=st.floats(0.0, 0.98), share=st.floats(0.01, 1.0))
def test_laws_are_probabilities(name, source_name, start, share):
    """T(. | z, x_1) >= 0 and sums to 1 between any two times, for the pairs that can occur."""
    step, source = STEPS[name], SOURCES[source_name]
    end = start + (1 - start) * share
    _, rows = rows_of(step, source, (start, min(end, 1.0)))
    for row in rows:
        law = step.transition_matrix(row, source)
        if source_name == "mask":
            law = np.concatenate([law[4, :4], law[np.arange(4), np.arange(4)]])
        assert law.min() > -1e-12
        np.testing.assert_allclose(law.sum(-1), 1.0, atol=1e-9)


@pytest.mark.parametrize("source_name", list(SOURCES))
@given(start=st.floats(0.0, 0.95), share=st.floats(0.02, 1.0))
def test_exact_kernels_keep_the_path(source_name, start, share):
    """sum_z C_t(z | x_1) T(x | z, x_1) = C_s(x | x_1) for exact, two_stage, ancestral, psi, and ReMDM: at any
    step length."""
    source, p = SOURCES[source_name], LAWS[source_name]
    end = min(start + (1 - start) * share, 1.0)
    names = ["exact", "two_stage", "ancestral", "psi"] + ["remask"] * (source_name == "mask")
    before, after = (transitions.mixture_states(k, p) for k in (start, end))
    data = np.arange(4 if source_name == "mask" else 5)
    for name in names:
        _, (row,) = rows_of(STEPS[name], source, (start, end))
        law = STEPS[name].transition_matrix(row, source)
        np.testing.assert_allclose(np.einsum("zv,zvx->xv", before, law)[:, data], after[:, data], atol=1e-9)


@given(start=st.floats(0.0, 0.95), share=st.floats(0.02, 1.0))
def test_ancestral_is_bayes_for_a_general_source(start, share):
    """The three-way form equals q(z | x) C_s(x | x_1) / C_t(z | x_1), the law of a non-uniform source included."""
    end = min(start + (1 - start) * share, 1.0)
    _, (row,) = rows_of(STEPS["ancestral"], RAMP, (start, end))
    bayes = transitions.ancestral(start, end)(LAWS["ramp"])
    np.testing.assert_allclose(STEPS["ancestral"].transition_matrix(row, RAMP), bayes, atol=1e-9)


@pytest.mark.parametrize("mode", ["cap", "rescale"])
def test_psi_with_masks_is_remasking(mode):
    """Where ReMDM masks no more often than C_s has masks: at z = m and at z = x_1 the same probabilities."""
    times = (0.0, 0.3, 0.5, 0.5, 0.7, 1.0)
    reachable = np.array([(4, v) for v in range(4)] + [(v, v) for v in range(4)])
    laws = []
    for step in (flow.Psi(mode, 0.1), flow.Remask(mode, 0.1)):
        _, rows = rows_of(step, MASK, times)
        laws.append([step.transition_matrix(row, MASK)[tuple(reachable.T)] for row in rows])
    for one, other in zip(*(law[1:] for law in laws), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
    held = laws[0][2]
    assert held[4:, 4].min() > 0.05 and held[:4, :4].max() > 0.01  # the held time masks and reveals


@pytest.mark.parametrize("source_name", list(SOURCES))
def test_a_held_time_changes_nothing_but_by_correcting(source_name):
    """At s = t: every step that does not correct stays, and all have a law."""
    source = SOURCES[source_name]
    for name, step in STEPS.items():
        if (name, source_name) not in PAIRS:
            continue
        _, rows = rows_of(step, source, (0.2, 0.4, 0.4, 1.0))
        held = len(rows) // 3
        for row in rows[held : 2 * held]:
            law = step.transition_matrix(row, source)
            np.testing.assert_allclose(law.sum(-1), 1.0, atol=1e-9)
            if name not in ("psi", "remask"):
                np.testing.assert_array_equal(law, np.broadcast_to(np.eye(5)[:, None], law.shape))


def test_unrestricted_draws_are_second_order():
    """For a general source div_free takes y ~ p with rate B instead of y != z with B (1 - p(z)): they differ by
    O(h^2)."""
    gaps = []
    for h in (0.02, 0.01):
        _, (row,) = rows_of(STEPS["div_free"], RAMP, (0.4, 0.4 + h))
        materialised = transitions.rate_step(h, transitions.reference_rates(0.4, 1.0, 2.0), last=False)
        gaps.append(np.abs(STEPS["div_free"].transition_matrix(row, RAMP) - materialised(LAWS["ramp"])).max())
    assert gaps[1] < 0.3 * gaps[0] < 0.01


def one_step_law(step, source, times, posterior):
    """P(x | z) = sum_v post(v | z) T(x | z, v) of a model that looks at its own token only; revealed tokens carry
    over."""
    law = np.broadcast_to(np.eye(source.num_states)[:, None], (source.num_states,) * 3).copy()
    _, rows = rows_of(step, source, times)
    total = np.eye(source.num_states)
    for row in rows:
        law = step.transition_matrix(row, source)
        post = posterior.copy()
        if source.mask_id is not None:
            post[np.arange(source.vocab_size)] = np.eye(source.num_states)[: source.vocab_size]
        total = total @ np.einsum("zv,zvx->zx", post, law)
    return total


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("name", "source_name"), PAIRS)
def test_one_step_of_the_solver_on_a_random_model(name, source_name):
    """The whole solver (groups, draws, keys) for one step from a state far from p_t: 100 000 positions, full
    power."""
    step, source = STEPS[name], SOURCES[source_name]
    logits = np.random.default_rng(5).normal(size=(5, 5)).astype(np.float32) * 1.5
    shifted = np.exp(logits)
    if source_name == "mask":
        shifted[:, 4] = 0
    posterior = shifted / shifted.sum(-1, keepdims=True)
    table = jnp.asarray(logits)
    path = flow.MixtureDiscreteProbPath(LINEAR)
    solver = flow.MixtureDiscreteSolver(lambda x, t: table[x], path, source, step=step, group_size=1 << 14)
    x_init = jnp.asarray(np.random.default_rng(6).integers(0, 5, (100, 1000)), jnp.int32)
    times = (0.4, 0.65)
    x = np.asarray(solver.sample(jax.random.key(11), x_init, time_grid=times))
    counts = np.zeros((5, 5))
    np.add.at(counts, (np.asarray(x_init), x), 1)
    law = one_step_law(step, source, times, posterior.astype(np.float64))
    assert excess(counts, law * counts.sum(-1, keepdims=True)) < 4.5


class Factored:
    """A fused model: features (B, L, D) of the trunk, head applied to gathered rows only."""

    def __init__(self, table, head):
        self.table, self.head = table, head

    def features(self, x, t):
        return self.table[x] + 0.1 * t[:, None, None]

    def draw(self, keys, features, x_t, t):
        return categorical.draw(keys, features @ self.head)


def dense_reference_step(key, x, logits, kappa, h, c):
    """The reference's form: x_1 for all positions, one-hot rates over the vocabulary, a categorical jump."""
    x_1_key, jump_key, target_key = jax.random.split(key, 3)
    states = logits.shape[-1]
    x_1 = jax.random.categorical(x_1_key, logits, mode="high")
    delta = jax.nn.one_hot(x_1, states)
    conditional = kappa * delta + (1 - kappa) / states
    rates = delta / (1 - kappa) + c / (kappa * (1 - kappa)) * conditional
    rates = jnp.where(jax.nn.one_hot(x, states) > 0, 0.0, rates)
    total = rates.sum(-1)
    jump = jax.random.uniform(jump_key, x.shape) < 1 - jnp.exp(-h * total)
    target = jax.random.categorical(target_key, jnp.log(rates), mode="high")
    return jnp.where(jump, target, x)


@pytest.mark.slow
def test_jumps_first_equals_the_dense_reference_form():
    """A million draws each on a random model of 12 tokens: the two one-step laws are one (two-sample
    chi-square)."""
    states, width = 12, 7
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(states, width)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(width, states)), jnp.float32)
    model = Factored(table, head)
    source = flow.UniformSource(states)
    path = flow.MixtureDiscreteProbPath(LINEAR)
    solver = flow.MixtureDiscreteSolver(model, path, source, step="euler", group_size=1 << 14)
    x = jnp.asarray(rng.integers(0, states, (100, 10_000)), jnp.int32)
    ours = np.asarray(solver.sample(jax.random.key(1), x, time_grid=(0.5, 0.7), div_free=1.0))
    # The dense form in slices: it needs a million rows of the vocabulary at a time otherwise.
    dense_step = jax.jit(dense_reference_step, static_argnums=(3, 4, 5))
    dense = np.concatenate(
        [
            np.asarray(
                dense_step(
                    jax.random.fold_in(jax.random.key(2), i),
                    rows,
                    model.features(rows, jnp.full((len(rows),), 0.5, jnp.float32)) @ head,
                    0.5,
                    0.2,
                    1.0,
                )
            )
            for i, rows in enumerate(jnp.split(x, 5))
        ]
    )
    counts = np.zeros((2, states, states))
    for i, sample in enumerate((ours, dense)):
        np.add.at(counts[i], (np.asarray(x), sample), 1)
    both = counts.sum(0)
    assert both.min() > 50
    statistic = ((counts[0] - counts[1]) ** 2 / both).sum()
    freedom = states * (states - 1)
    assert abs(statistic - freedom) / np.sqrt(2 * freedom) < 4.5
    assert (ours != np.asarray(x)).mean() > 0.3
