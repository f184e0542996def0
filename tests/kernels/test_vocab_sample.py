"""Draws from the vocabulary head: their law, their tail, what they depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import vocab_head


def law(rows, logits, *, key=0, suppress=None, num_valid=None, implementation=None, **options):
    """Draws of `rows` rows that all have these logits."""
    bias = jnp.asarray(logits, jnp.float32)
    head = vocab_head.Head(jnp.zeros((1, bias.size)), bias, num_valid=num_valid, implementation=implementation)
    asked = head, vocab_head.Query(suppress=suppress), jnp.zeros((rows, 1))
    return np.asarray(jax.jit(lambda key: vocab_head.sample(*asked, key, **options))(jax.random.key(key)))


def assert_law(draws, probs):
    """Chi-square within four standard deviations; nothing outside the support."""
    counts = np.bincount(draws, minlength=probs.size)
    support = probs > 0
    assert counts[~support].sum() == 0
    expected = draws.size * probs[support] / probs.sum()
    chi_square = ((counts[support] - expected) ** 2 / expected).sum()
    degrees = support.sum() - 1
    assert abs(chi_square - degrees) < 4 * np.sqrt(2 * max(degrees, 1)) + 4, (chi_square, degrees)


@pytest.mark.slow
def test_the_tail_is_not_lost():
    """mathematics.md E.4: 4095 tokens of mass 2^-22. Gumbels on a float32 grid give about 150 instead of 200."""
    log_probs = np.full(4096, -22 * np.log(2))
    log_probs[0] = np.log1p(-4095 * 2.0**-22)
    counts = [int((law(204800, log_probs, key=key) != 0).sum()) for key in range(2)]
    assert abs(np.mean(counts) - 200) < 3.5 * np.sqrt(200 / 2), counts


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", ["dense", "blocks"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"top_p": 0.8}, {"top_p": 1e-6}, {"suppress": 17}])
def test_law(implementation, options):
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(size=300), 1) * 1.5  # rounded: equal ones
    probs = np.where(np.arange(300) < 290, np.exp(logits / options.get("temperature", 1.0)), 0)
    if "suppress" in options:
        probs[options["suppress"]] = 0
    probs /= probs.sum()
    if "top_p" in options:
        ordered = np.sort(probs)[::-1]
        last = ordered[(np.cumsum(ordered) - ordered < options["top_p"]).sum() - 1]
        probs = np.where(probs >= last * (1 - 1e-9), probs, 0)
    rows = 4000 if implementation == "dense" else 20000
    assert_law(law(rows, logits, num_valid=290, implementation=implementation, **options), probs)


def test_shift_and_temperature_by_row():
    rows = 8000
    bias = jnp.asarray(np.random.default_rng(0).normal(size=40), jnp.float32)
    temperature = jnp.where(jnp.arange(rows) % 2 == 0, 0.5, 2.0)
    amounts = jnp.where(jnp.arange(rows) % 2 == 0, -jnp.inf, 2.0)
    query = vocab_head.Query(shift=amounts, shift_ids=jnp.full((rows,), 3, jnp.int32))
    head = vocab_head.Head(jnp.zeros((1, 40)), bias)
    draws = jax.jit(vocab_head.sample)(head, query, jnp.zeros((rows, 1)), jax.random.key(1), temperature=temperature)
    draws = np.asarray(draws)
    for parity, amount, t in ((0, -np.inf, 0.5), (1, 2.0, 2.0)):
        logits = np.asarray(bias, np.float64)
        logits[3] += amount
        assert_law(draws[parity::2], np.exp(logits / t))


NOTHING = vocab_head.Query()


def random_head(rows, **options):
    keys = jax.random.split(jax.random.key(2), 3)
    head = vocab_head.Head(jax.random.normal(keys[1], (16, 257)), jax.random.normal(keys[2], (257,)), **options)
    return jax.random.normal(keys[0], (rows, 16)), head


@pytest.mark.slow
def test_a_row_depends_on_its_own_key_alone():
    features, head = random_head(37)
    keys = jax.random.split(jax.random.key(3), 37)
    sample = jax.jit(vocab_head.sample)
    draws = sample(random_head(37, block_rows=8)[1], NOTHING, features, keys)
    np.testing.assert_array_equal(draws[5:9], sample(head, NOTHING, features[5:9], keys[5:9]))
    by_sequence = sample(head, NOTHING, features[:36].reshape(4, 9, 16), keys[:36].reshape(4, 9))
    np.testing.assert_array_equal(draws[:36].reshape(4, 9), by_sequence)


@pytest.mark.parametrize("implementation", ["dense", "blocks"])
def test_argmax(implementation):
    features, head = random_head(37, num_valid=250, implementation=implementation)
    logits = np.asarray(features) @ np.asarray(head.kernel) + np.asarray(head.bias)
    logits[:, 250:] = -np.inf
    logits[:, 5] = -np.inf
    found = vocab_head.argmax(head, vocab_head.Query(suppress=5), features)
    np.testing.assert_array_equal(found, logits.argmax(-1))
    even = vocab_head.Head(jnp.zeros((4, 256)), jnp.zeros(256), implementation=implementation)
    ties = vocab_head.argmax(even, NOTHING, jnp.zeros((2, 4)))
    np.testing.assert_array_equal(ties, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature = 0.0: expected a number above 0"),
        ({"top_p": 1.5}, "top_p = 1.5: expected"),
        ({"key": jnp.zeros(2, jnp.uint32)}, "typed PRNG key"),
        ({"key": jax.random.split(jax.random.key(0), 5)}, "key = shape"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    features, head = random_head(3)
    with pytest.raises(ValueError, match=message):
        vocab_head.sample(head, NOTHING, features, **({"key": jax.random.key(0)} | change))
