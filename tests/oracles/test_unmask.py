"""Adaptive unmasking: the printed values by enumeration, the project's choices at every state, whole samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import toys, transitions, unmasking
from oracles.test_sampler_frequencies import counts_of, excess, tabulated

from dfm_jax import flow
from dfm_jax.flow.samplers.denoiser import Answer
from dfm_jax.flow.samplers.moves import State
from dfm_jax.flow.samplers.unmasking.unmask import UnmaskMoves

LINEAR = flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
ORDERS = ("confidence", "margin", "entropy")
# (toy, order) -> total variation at count = 1, 2, 3.
BY_COUNT = {
    **{("B", order): (0, 0.125195, 0.240849) for order in ORDERS},
    **{("D", order): (0, 0.261261, 0.429429) for order in ORDERS},
    **{("A", order): (0, 0.249023) for order in (*ORDERS, "random")},
    ("B", "random"): (0, 0.050055, 0.240849),
    ("D", "random"): (0, 0.261753, 0.429429),
}
# (toy, order, bound) -> total variation, mean evaluations, KL.
BY_BOUND = {
    ("B", "confidence", 1.2): (0.042813, 2.7982, 0.025130),
    ("B", "margin", 1.2): (0.042813, 2.7982, 0.025130),
    ("B", "entropy", 1.2): (0.027766, 2.8073, 0.013260),
    ("B", "entropy", 0.9): (0, 3, 0),
    ("D", "entropy", 0.9): (0.277575, 2, 0.190905),
    ("D", "confidence", 1.2): (0.261261, 2, 0.150627),
    ("D", "confidence", 0.6): (0, 3, 0),
}


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(("toy", "order"), BY_COUNT)
def test_by_count(toy, order):
    for k, printed in enumerate(BY_COUNT[toy, order], 1):
        law, evaluations = unmasking.run(toy, unmasking.by_count(order, k))
        assert unmasking.distance(law, toy) == pytest.approx(printed, abs=1e-6)
        assert evaluations == pytest.approx(-(-toys.TOYS[toy].length // k))
        assert_choices(toy, flow.Unmask(order, count=k), unmasking.by_count(order, k))


@pytest.mark.parametrize(("toy", "order", "bound"), BY_BOUND)
def test_by_bound(toy, order, bound):
    choice = unmasking.by_bound(order, bound)
    law, evaluations = unmasking.run(toy, choice)
    tv, mean, kl = BY_BOUND[toy, order, bound]
    assert unmasking.distance(law, toy) == pytest.approx(tv, abs=1e-6)
    assert evaluations == pytest.approx(mean, abs=1e-4)
    assert unmasking.divergence(law, toy) == pytest.approx(kl, abs=1e-6)
    assert_choices(toy, flow.Unmask(order, bound=bound), choice)


def test_by_blocks():
    """Position 2 alone in the second block: it comes last, and one at a time stays exact."""
    choice = unmasking.by_count("entropy", 1, block=2)
    assert unmasking.distance(unmasking.run("D", choice)[0], "D") < 1e-12
    for k in (1, 2):
        choice = unmasking.by_count("confidence", k, block=2)
        assert_choices("B", flow.Unmask("confidence", count=k, blocks=2), choice)


def assert_choices(toy_name, unmask, choice):
    """At every state the moves reveal what the definition says; in random order each subset as often."""
    toy = toys.TOYS[toy_name]
    mask, repeats = toy.vocab_size, 200 if unmask.order == "random" else 1
    states = toys.sequences(mask + 1, toy.length)
    states = states[(states == mask).any(-1)]
    posts = transitions.posterior(toy_name, "mask", 0.5)[:, :, :mask]
    posts = posts[np.ravel_multi_index(states.T, (mask + 1,) * toy.length)]
    x = jnp.asarray(np.repeat(states, repeats, 0))
    post = jnp.asarray(np.repeat(posts, repeats, 0), jnp.float32)
    moves = UnmaskMoves(unmask, mask, flow.CondOTScheduler())

    @jax.jit
    def revealed(x, post):
        keys = jax.random.split(jax.random.key(0), len(x))
        row = {"number": jnp.int32(0), "time": jnp.float32(0)}
        state = State.start(x, jnp.zeros(x.shape, bool))
        question = moves.ask(row, state, keys)
        top_two = jax.lax.top_k(post, 2)[0]
        entropy = -(post * jnp.log(jnp.where(post > 0, post, 1.0))).sum(-1)
        answer = Answer(jnp.zeros_like(x), None, top_two, entropy)
        return question.t, question.needed, moves.move(row, state, question, answer).x != x

    t, needed, found = (np.asarray(a) for a in revealed(x, post))
    masked = np.asarray(x) == mask
    np.testing.assert_allclose(t, 1 - masked.mean(-1), atol=1e-6)
    assert not (needed & ~masked).any() and not (found & ~needed).any()
    if unmask.order == "random":
        assert (needed == found).all()  # the head is asked at no other row
    found = found.reshape(len(states), repeats, -1)
    for state, post_at, chosen in zip(states, posts, found, strict=True):
        options = choice(post_at, [i for i in range(toy.length) if state[i] == mask])
        wanted = {frozenset(int(i) for i in positions): share for share, positions in options}
        got = [frozenset(np.flatnonzero(row).tolist()) for row in chosen]
        assert set(got) == set(wanted), (state, got, wanted)
        for positions, share in wanted.items():
            error = abs(np.mean([g == positions for g in got]) - share)
            assert error <= 4.5 * np.sqrt(share * (1 - share) / repeats)


def sample(toy, step, n=20_000, **options):
    source = flow.MaskSource(toys.TOYS[toy].vocab_size)
    solver = flow.MixtureDiscreteSolver(tabulated(toy, "mask", [0.5]), LINEAR, source, step=step, group_size=1 << 14)
    x_init = source.sample(jax.random.key(1), (n, toys.TOYS[toy].length))
    return solver.sample(jax.random.key(2), x_init, return_evaluations=True, **options)


def law_over_states(law, toy):
    """A law over data as one over all states."""
    v, length = toys.TOYS[toy].vocab_size, toys.TOYS[toy].length
    return np.pad(law.reshape((v,) * length), [(0, 1)] * length).reshape(-1)


@pytest.mark.slow
def test_samples_have_the_enumerated_law_and_evaluations():
    law, mean = unmasking.run("B", unmasking.by_bound("entropy", 1.2))
    x, evaluations = sample("B", "unmask:order=entropy,bound=1.2")
    assert excess(counts_of(x, 5), law_over_states(law, "B")) < 4.5
    assert np.mean(evaluations.trunk) == pytest.approx(mean, abs=0.015)
    assert set(np.unique(evaluations.trunk)) == {2, 3}


@pytest.mark.slow
def test_the_probability_of_the_drawn_token_is_no_exact_order():
    """TV .211 on toy A one at a time, in one evaluation fewer than tokens would be none."""
    x, evaluations = sample("A", "unmask:order=drawn,count=1")
    law = counts_of(x, 4) / len(x)
    assert transitions.distance(law, "A", "mask") == pytest.approx(0.211, abs=0.012)
    assert (np.asarray(evaluations.trunk) == 2).all()


@pytest.mark.slow
@pytest.mark.parametrize(("toy", "tv"), [("B", 0.327), ("D", 0.219)])
def test_the_drawn_order_on_three_tokens(toy, tv):
    x, _ = sample(toy, "unmask:order=drawn,count=1", n=40_000)
    law = counts_of(x, toys.TOYS[toy].vocab_size + 1) / len(x)
    assert transitions.distance(law, toy, "mask") == pytest.approx(tv, abs=0.012)
