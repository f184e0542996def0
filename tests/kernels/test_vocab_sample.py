"""Draws from the vocabulary head: their law, their tail, what they depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import vocab


def law(rows, logits, *, key=0, **options):
    """Draws of `rows` rows that all have these logits."""
    bias = jnp.asarray(logits, jnp.float32)
    draw = jax.jit(lambda key: vocab.sample(key, jnp.zeros((rows, 1)), jnp.zeros((1, bias.size)), bias, **options))
    return np.asarray(draw(jax.random.key(key)))


def assert_law(draws, probs):
    """Chi-square within four standard deviations; nothing outside the support."""
    counts = np.bincount(draws, minlength=probs.size)
    support = probs > 0
    assert counts[~support].sum() == 0
    expected = draws.size * probs[support] / probs.sum()
    chi_square = ((counts[support] - expected) ** 2 / expected).sum()
    degrees = support.sum() - 1
    assert abs(chi_square - degrees) < 4 * np.sqrt(2 * max(degrees, 1)) + 4, (chi_square, degrees)


def test_the_tail_is_not_lost():
    """mathematics.md E.4: 4095 tokens of mass 2^-22. Gumbels on a float32 grid give about 150 instead of 200."""
    log_probs = np.full(4096, -22 * np.log(2))
    log_probs[0] = np.log1p(-4095 * 2.0**-22)
    counts = [int((law(204800, log_probs, key=key) != 0).sum()) for key in range(2)]
    assert abs(np.mean(counts) - 200) < 3.5 * np.sqrt(200 / 2), counts


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
    shift = vocab.Shift(jnp.full((rows,), 3, jnp.int32), amounts)
    draws = np.asarray(
        jax.jit(vocab.sample)(
            jax.random.key(1), jnp.zeros((rows, 1)), jnp.zeros((1, 40)), bias, shift=shift, temperature=temperature
        )
    )
    for parity, amount, t in ((0, -np.inf, 0.5), (1, 2.0, 2.0)):
        logits = np.asarray(bias, np.float64)
        logits[3] += amount
        assert_law(draws[parity::2], np.exp(logits / t))


def random_head(rows):
    keys = jax.random.split(jax.random.key(2), 3)
    return (
        jax.random.normal(keys[0], (rows, 16)),
        jax.random.normal(keys[1], (16, 257)),
        jax.random.normal(keys[2], (257,)),
    )


def test_a_row_depends_on_its_own_key_alone():
    features, kernel, bias = random_head(37)
    keys = jax.random.split(jax.random.key(3), 37)
    sample = jax.jit(vocab.sample, static_argnames="block_rows")
    draws = sample(keys, features, kernel, bias, block_rows=8)
    np.testing.assert_array_equal(draws[5:9], sample(keys[5:9], features[5:9], kernel, bias))
    by_sequence = sample(keys[:36].reshape(4, 9), features[:36].reshape(4, 9, 16), kernel, bias)
    np.testing.assert_array_equal(draws[:36].reshape(4, 9), by_sequence)


@pytest.mark.parametrize("implementation", ["dense", "blocks"])
def test_argmax(implementation):
    features, kernel, bias = random_head(37)
    logits = np.asarray(features) @ np.asarray(kernel) + np.asarray(bias)
    logits[:, 250:] = -np.inf
    logits[:, 5] = -np.inf
    found = vocab.argmax(features, kernel, bias, suppress=5, num_valid=250, implementation=implementation)
    np.testing.assert_array_equal(found, logits.argmax(-1))
    ties = vocab.argmax(jnp.zeros((2, 4)), jnp.zeros((4, 256)), jnp.zeros(256), implementation=implementation)
    np.testing.assert_array_equal(ties, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: accepted temperature > 0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"key": jnp.zeros(2, jnp.uint32)}, "typed PRNG key"),
        ({"key": jax.random.split(jax.random.key(0), 5)}, "key of shape"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    features, kernel, bias = random_head(3)
    arguments = {"key": jax.random.key(0), "features": features, "kernel": kernel, "bias": bias} | change
    with pytest.raises(ValueError, match=message):
        vocab.sample(**arguments)
