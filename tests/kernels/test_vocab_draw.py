"""How sure the head is of a draw: the fused answers against their definition, from the same pass as the draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import vocab_head

ROWS, WIDTH, STORED, VALID = 37, 16, 384, 301
ASKED = frozenset({"log_prob", "top_two", "entropy", "at_ids"})
KEYS = jax.random.split(jax.random.key(0), 4)
FEATURES = jax.random.normal(KEYS[0], (ROWS, WIDTH))
KERNEL, BIAS = jax.random.normal(KEYS[1], (WIDTH, STORED)), jax.random.normal(KEYS[2], (STORED,))
ROW_KEYS = jax.random.split(KEYS[3], ROWS)
IDS = jnp.stack([jnp.arange(ROWS, dtype=jnp.int32), jnp.full((ROWS,), VALID - 1, jnp.int32)], -1)
QUERY = vocab_head.Query(IDS, jnp.linspace(-3.0, 3.0, ROWS), (IDS[:, 0] * 5) % VALID, suppress=7)


def draw(implementation, asked=ASKED, key=ROW_KEYS, **options):
    head = vocab_head.Head(KERNEL, BIAS, num_valid=VALID, implementation=implementation, block_rows=8)
    return jax.jit(lambda: vocab_head.draw(head, QUERY, FEATURES, key, asked=asked, **options))()


def exact(token):
    """The answers in float64."""
    logits = np.asarray(FEATURES, np.float64) @ np.asarray(KERNEL, np.float64) + np.asarray(BIAS, np.float64)
    logits[np.arange(ROWS), np.asarray(QUERY.shift_ids)] += np.asarray(QUERY.shift)
    logits[:, VALID:] = logits[:, 7] = -np.inf
    log_p = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log_p -= logits.max(-1, keepdims=True)
    p = np.exp(log_p)
    entropy = -np.where(p > 0, p * np.where(p > 0, log_p, 0), 0).sum(-1)
    at = np.take_along_axis
    return at(log_p, np.asarray(token)[:, None], 1)[:, 0], np.sort(p)[:, :-3:-1], entropy, at(log_p, np.asarray(IDS), 1)


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("implementation", ["dense", "blocks", "pallas"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.4, "top_p": 0.7}, {"key": None}])
def test_answers_are_those_of_the_law_before_temperature(implementation, options):
    drawn = draw(implementation, **options)
    log_prob, top_two, entropy, at_ids = exact(drawn.token)
    np.testing.assert_allclose(drawn.log_prob, log_prob, atol=1e-5)
    np.testing.assert_allclose(drawn.top_two, top_two, atol=1e-6)
    np.testing.assert_allclose(drawn.entropy, entropy, atol=1e-5)
    np.testing.assert_allclose(drawn.at_ids, at_ids, atol=1e-5)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", ["dense", "blocks"])
def test_the_token_is_that_of_sample(implementation):
    head = vocab_head.Head(KERNEL, BIAS, num_valid=VALID, implementation=implementation)
    sample = vocab_head.sample(head, QUERY, FEATURES, ROW_KEYS, temperature=0.7, top_p=0.9)
    np.testing.assert_array_equal(draw(implementation, temperature=0.7, top_p=0.9).token, sample)
    np.testing.assert_array_equal(draw(implementation, key=None).token, vocab_head.argmax(head, QUERY, FEATURES))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", ["dense", "blocks"])
def test_what_is_not_asked_for_is_not_there(implementation):
    for word in ASKED:
        drawn = draw(implementation, frozenset({word}))
        assert {name for name in ASKED if getattr(drawn, name) is not None} == {word}
        whole = getattr(draw(implementation), word)
        np.testing.assert_allclose(getattr(drawn, word), whole, rtol=1e-6)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", ["dense", "blocks"])
def test_ties_and_a_law_without_doubt(implementation):
    """Equal logits: both of the top two are 1 / 2. One token alone: probability 1, entropy 0, no second."""
    bias = jnp.full((128,), -jnp.inf).at[jnp.array([3, 90])].set(2.0)
    head = vocab_head.Head(jnp.zeros((1, 128)), bias, implementation=implementation)
    query = vocab_head.Query(jnp.zeros((2, 1), jnp.int32))
    drawn = vocab_head.draw(head, query, jnp.zeros((2, 1)), jax.random.key(0), asked=ASKED)
    np.testing.assert_allclose(drawn.top_two, 0.5, rtol=1e-6)
    np.testing.assert_allclose(drawn.entropy, np.log(2), rtol=1e-6)
    assert (drawn.at_ids == -jnp.inf).all()
    alone = vocab_head.draw(
        vocab_head.Head(jnp.zeros((1, 128)), bias.at[90].set(-jnp.inf), implementation=implementation),
        query, jnp.zeros((2, 1)), jax.random.key(0), asked=ASKED,
    )  # fmt: skip
    assert (alone.token == 3).all() and (alone.log_prob == 0).all() and (alone.entropy == 0).all()
    np.testing.assert_array_equal(alone.top_two, [[1.0, 0.0]] * 2)


def test_words_that_mean_nothing():
    with pytest.raises(ValueError, match=r"asked = \['variance'\]: expected some of log_prob"):
        draw("blocks", frozenset({"variance"}))
    head = vocab_head.Head(KERNEL, BIAS)
    with pytest.raises(ValueError, match="ids = None: expected ids"):
        vocab_head.draw(head, vocab_head.Query(), FEATURES, ROW_KEYS, asked=frozenset({"at_ids"}))
