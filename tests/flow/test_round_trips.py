"""How often a sampler asks its host: on a GPU every branch and every loop of unknown length waits for the answer."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow
from dfm_jax.flow.samplers import denoiser as denoisers
from dfm_jax.flow.samplers.denoiser import Needs, Question

VOCAB, BATCH, LENGTH = 11, 3, 8
PATH = flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
SOURCES = {"mask": flow.MaskSource(VOCAB), "uniform": flow.UniformSource(VOCAB)}


def model(x, t):
    table = jnp.asarray(np.random.default_rng(3).normal(size=(VOCAB + 1, VOCAB + 1)), jnp.float32)
    return table[x] + 0.5 * jnp.roll(table[x], 1, 1) + t[:, None, None]


def questions(jaxpr):
    """How many branches and loops of unknown length stand in a program, those inside others too."""
    found = collections.Counter()
    for equation in jaxpr.eqns:
        found[equation.primitive.name] += 1
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += questions(inner)
    return found


@pytest.mark.parametrize(
    ("source", "options", "branches", "loops"),
    [
        # Each step: whether the network is needed, then whether one group of rows was enough.
        ("uniform", {"step": "exact", "group_size": 8}, 1, 1),
        ("uniform", {"step": "euler", "group_size": 8}, 1, 1),
        ("uniform", {"step": "ancestral", "group_size": 8}, 1, 1),
        ("uniform", {"step": "exact", "group_size": 8, "corrector": "forward_backward"}, 1, 1),
        ("mask", {"step": "unmask", "group_size": 8}, 1, 1),
        # One group holds all positions.
        ("uniform", {"step": "exact", "group_size": 32}, 1, 0),
        # The loop over moves asks whether a sequence is unfinished; then the network is needed.
        ("mask", {"step": "unmask:count=2", "group_size": 8}, 0, 2),
        ("mask", {"step": "unmask:bound=0.5", "group_size": 32}, 0, 1),
        # A round of the corrector may find nothing to correct.
        ("mask", {"step": "unmask:count=2", "group_size": 8, "corrector": "gibbs:sites=1"}, 1, 2),
    ],
)
def test_questions_to_the_host(source, options, branches, loops):
    law = SOURCES[source]
    networks = flow.from_logits(lambda x, t: model(x, t)[..., : law.num_states])
    solver = flow.Solver(networks, PATH, law, **options)
    steps = {} if "count" in options["step"] or "bound" in options["step"] else {"steps": 4}
    x = law.sample(jax.random.key(0), (BATCH, LENGTH))
    found = questions(jax.make_jaxpr(lambda key: solver.sample(key, x, **steps))(jax.random.key(1)).jaxpr)
    assert (found["cond"], found["while"]) == (branches, loops), found


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("group", [4, 32])
def test_the_first_group_without_a_question_gives_the_same_answers(group):
    """Bit for bit, with a certainty too, whether the rows needed fill no group, some or all."""
    network = flow.from_logits(model, suppress=VOCAB)
    x = jax.random.randint(jax.random.key(0), (BATCH, LENGTH), 0, VOCAB)
    keys, t = jax.random.split(jax.random.key(1), BATCH), jnp.full((BATCH,), 0.3)
    features = network.features(x, t)
    both = Needs.DRAWS | Needs.LOG_PROB
    answer = jax.jit(functools.partial(denoisers.answer_where, network), static_argnames=("needs", "group", "certain"))
    for count in (1, 3, 4, 8, 23, BATCH * LENGTH):
        flat = np.random.default_rng(count).permutation(BATCH * LENGTH) < count
        question = Question(x, t, jnp.asarray(flat.reshape(x.shape)), keys)
        one, other = (answer(features, question, needs=both, group=group, certain=c) for c in (False, True))
        np.testing.assert_array_equal(one.x_1, other.x_1)
        np.testing.assert_array_equal(one.log_prob, other.log_prob)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("step", ["unmask:count=1", "unmask:count=3", "unmask:bound=1", "unmask:count=2,blocks=3"])
def test_an_unfinished_sequence_is_always_asked_about(step):
    """What lets the loop run the network without a question: every evaluation is of a sequence that has masks left."""
    x = jnp.full((BATCH, LENGTH), VOCAB)
    fixed = jnp.arange(LENGTH)[None] < jnp.asarray([0, 5, LENGTH])[:, None]  # the last one is finished from the start
    solver = flow.Solver(flow.from_logits(model), PATH, SOURCES["mask"], step=step, group_size=8)
    start = jnp.where(fixed, 3, x)
    tokens, spent = solver.sample(jax.random.key(2), start, fixed=fixed, return_evaluations=True)
    assert (np.asarray(tokens) < VOCAB).all() and (np.asarray(tokens)[fixed] == 3).all()
    most = {"unmask:count=1": [8, 3, 0], "unmask:count=3": [3, 1, 0], "unmask:count=2,blocks=3": [4, 2, 0]}
    if step in most:
        np.testing.assert_array_equal(spent.trunk, most[step])
    assert spent.trunk[2] == 0 and spent.head_rows[2] == 0
