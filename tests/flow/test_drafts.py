"""Coupled drafts give the tokens of one move at a time, and need fewer evaluations one after the other."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow
from dfm_jax.flow.samplers import drafts
from dfm_jax.flow.samplers.denoiser import Question

VOCAB, LENGTH = 7, 16
SOURCES = {"mask": flow.MaskSource(VOCAB), "uniform": flow.UniformSource(VOCAB)}
# method, corrector. The second list has what takes its questions from elsewhere.
PLAIN = [("exact", None), ("euler", None), ("ancestral", None), ("two_stage:div_free=1", None)]
PLAIN += [("psi", None), ("exact", "forward_backward:rounds=2")]
CHAINS = [("first_hitting", None), ("thinning:delta=0.3", None)]
ADAPTIVE = [
    ("unmask:order=random,count=1", None),
    ("unmask:order=entropy,bound=0.6", None),
    ("unmask:order=confidence", None),
    ("unmask:order=margin,count=2", "gibbs:sites=1"),
]
CORRECTED = [("exact", "gibbs:sites=2"), ("exact", "resample:rate=0.3"), ("exact", "gibbs:informed=2")]
CASES = [("mask", *case) for case in PLAIN + ADAPTIVE + CORRECTED + CHAINS]
CASES += [("uniform", *case) for case in PLAIN + CORRECTED + CHAINS[1:]]
QUICK = {("uniform", "ancestral", None), ("mask", "unmask:order=margin,count=2", "gibbs:sites=1")}
QUICK |= {("mask", "first_hitting", None)}


def logits(states: int, x, t):
    """A chain's: what stands left and right counts, and x itself where there is noise."""
    table = jnp.asarray(np.random.default_rng(0).normal(0, 1.5, (VOCAB, VOCAB)), jnp.float32)
    known = jax.nn.one_hot(x, VOCAB)
    left, right = jnp.pad(known[:, :-1], ((0, 0), (1, 0), (0, 0))), jnp.pad(known[:, 1:], ((0, 0), (0, 1), (0, 0)))
    own = 0.0 if states > VOCAB else 4.0 * t[:, None, None] * known
    return jnp.pad(left @ table + right @ table.T + own, ((0, 0), (0, 0), (0, states - VOCAB)))


def solver(source: str, method: str, corrector: str | None = None, **options) -> flow.Solver:
    chosen, path = SOURCES[source], flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
    model = functools.partial(logits, chosen.num_states)
    return flow.Solver(model, path, chosen, step=method, corrector=corrector, **options)


def sample(chosen: flow.Solver, draft: int, *, batch=3, steps=12, **options):
    x = chosen.source.sample(jax.random.key(0), (batch, LENGTH))
    fixed = jnp.arange(LENGTH)[None] == jnp.arange(batch)[:, None]
    x = jnp.where(fixed, 2, x)
    return chosen.sample(
        jax.random.key(1), x, steps=steps, draft=draft, fixed=fixed, return_evaluations=True,
        return_intermediates=[0.0, 0.4, 1.0], **options,
    )  # fmt: skip


def check_same(chosen: flow.Solver, drafted: tuple[int, ...], **options) -> list[flow.Evaluations]:
    tokens, alone = sample(chosen, 1, **options)
    assert (np.asarray(alone.sequential) == np.asarray(alone.trunk)).all()
    found = []
    for draft in drafted:
        again, spent = sample(chosen, draft, **options)
        np.testing.assert_array_equal(again, tokens, err_msg=f"draft = {draft}")
        np.testing.assert_array_equal(spent.used, alone.used)
        assert (np.asarray(spent.sequential) <= np.asarray(spent.used)).all()
        assert (np.asarray(spent.used) <= np.asarray(spent.trunk)).all()
        assert (np.asarray(spent.trunk) <= draft * np.asarray(spent.sequential)).all()
        found.append(spent)
    return found


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES], ids=str
)
def test_tokens_frames_and_used_evaluations_are_those_of_draft_1(case):
    check_same(solver(*case), (4,))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("source", SOURCES)
def test_every_draft_and_batch(source, batch):
    for method in ("exact", "euler"):
        check_same(solver(source, method), (2, 3, 8, 16), batch=batch)


@pytest.mark.slow
def test_under_guidance_by_the_prompt():
    (spent,) = check_same(solver("mask", "exact", guidance=2.0), (4,))
    assert (np.asarray(spent.trunk) % 2 == 0).all() and (np.asarray(spent.sequential) % 2 == 0).all()
    check_same(solver("mask", "unmask:order=margin,count=2", guidance="linear:0.5,3"), (3,))


@pytest.mark.slow
def test_on_other_paths():
    linear, bell = flow.CondOTScheduler(), flow.CategoricalSource(np.arange(1.0, VOCAB + 1) / 28)
    places = np.linspace(-1, 1, VOCAB)[:, None]
    paths = {
        ("metric", "kinetic_optimal"): (flow.MetricProbPath(linear, places), SOURCES["uniform"]),
        ("three terms", "exact"): (flow.ThreeTermProbPath(linear, VOCAB, 1.0), SOURCES["mask"]),
        ("kinetic optimal", "exact"): (flow.KineticOptimalProbPath(linear, bell), bell),
    }
    for (name, method), (path, source) in paths.items():
        chosen = flow.Solver(functools.partial(logits, source.num_states), path, source, step=method)
        spent = check_same(chosen, (4,))[0]
        assert np.asarray(spent.sequential).mean() < np.asarray(spent.used).mean(), name


@pytest.mark.slow
def test_there_are_fewer_evaluations_one_after_the_other():
    """About those of the chain in mathematics.md E.5, at 128 steps."""
    for source, most in (("mask", 0.5), ("uniform", 0.75)):
        (spent,) = check_same(solver(source, "exact"), (8,), steps=128, batch=8)
        assert np.asarray(spent.sequential).mean() < most * np.asarray(spent.used).mean()


def test_a_window_begins_where_a_guess_failed():
    """A model that changes its mind at each move makes every guess wrong: one move a window."""

    def fickle(x, t):
        wanted = jnp.round(t * 64).astype(jnp.int32) % VOCAB
        return jnp.broadcast_to(50.0 * jax.nn.one_hot(wanted, VOCAB)[:, None], (*x.shape, VOCAB))

    path = flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
    chosen = flow.Solver(fickle, path, SOURCES["uniform"], step="multiflow:eta=9")
    x = chosen.source.sample(jax.random.key(0), (1, 64))
    tokens, alone = chosen.sample(jax.random.key(1), x, steps=16, return_evaluations=True)
    again, spent = chosen.sample(jax.random.key(1), x, steps=16, draft=4, return_evaluations=True)
    np.testing.assert_array_equal(again, tokens)
    assert int(spent.used[0]) == int(alone.trunk[0]) and int(spent.sequential[0]) >= int(alone.trunk[0]) - 1


def test_on_a_processor_features_are_the_same_to_the_last_bit():
    chosen, rng = solver("uniform", "exact"), np.random.default_rng(1)
    x = jnp.asarray(rng.integers(0, VOCAB, (2, 5, LENGTH)), jnp.int32)
    t = jnp.asarray(rng.random((2, 5)), jnp.float32)
    inputs = Question(x, t, None, None)  # pyright: ignore[reportArgumentType]
    found = jax.jit(lambda inputs: drafts._evaluate(chosen.model, inputs, ()))(inputs)
    for j in range(5):
        np.testing.assert_array_equal(found[:, j], jax.jit(chosen.model.features)(x[:, j], t[:, j]))


@pytest.mark.slow
def test_inside_shard_map_with_checked_types():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    chosen = solver("mask", "exact")

    def generate(keys):
        x = jnp.full((keys.shape[0], LENGTH), VOCAB, jnp.int32)
        return chosen.sample(keys, x, steps=6, draft=3)

    spec = jax.sharding.PartitionSpec
    keys = jax.random.split(jax.random.key(0), 3)
    sharded = jax.jit(jax.shard_map(generate, mesh=mesh, in_specs=spec("data"), out_specs=spec("data")))
    x = jnp.full((3, LENGTH), VOCAB, jnp.int32)
    np.testing.assert_array_equal(sharded(keys), chosen.sample(keys, x, steps=6))


@pytest.mark.parametrize("draft", [0, -1, 1.5, True, None, "8", [1], float("nan"), float("inf"), 10**12])
def test_a_draft_is_a_number_of_inputs(draft):
    with pytest.raises(ValueError, match=rf"^draft = {re.escape(repr(draft))}: expected an integer of 1 or more$"):
        sample(solver("mask", "exact"), draft)


def test_no_more_inputs_than_there_are_moves():
    """Three steps have no fourth input: what is longer is no other program."""
    chosen = solver("mask", "exact")
    drafted = [sample(chosen, draft, steps=3) for draft in (3, 1000)]
    for one, other in zip(*map(jax.tree.leaves, drafted), strict=True):
        np.testing.assert_array_equal(one, other)
    assert chosen._draft_program._cache_size() == 1
