"""The two-level inverse CDF: exact laws, tails, nucleus, temperature (mathematics.md E.4)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.flow import categorical
from dfm_jax.flow.samplers.denoiser import from_logits

FULL = 2**32 - 1


def effective_law(logits):
    """The law that `draw` realises, from its integer masses, in float64."""
    mass = np.exp(np.asarray(logits, np.float32) - np.float32(logits.max()))
    blocks = np.pad(mass, (0, -len(mass) % categorical.BLOCK)).reshape(-1, categorical.BLOCK)
    outer = np.asarray(categorical.integer_masses(jnp.asarray(blocks.sum(-1))[None])[0], np.float64)
    safe = jnp.asarray(np.where(blocks.sum(-1, keepdims=True) > 0, blocks, 1))
    inner = np.asarray(categorical.integer_masses(safe), np.float64)
    return (outer[:, None] / FULL * inner / FULL).reshape(-1)[: len(mass)]


def exact_law(logits):
    mass = np.exp(np.float64(logits) - np.float64(logits.max()))
    return mass / mass.sum()


def tail_draws(exponent, draws=204_800, states=4096, rows=4096):
    """How often a category other than 0 comes up, if each has probability 2^-exponent."""
    tail = 2.0**-exponent
    logits = np.full(states, np.log(tail), np.float32)
    logits[0] = np.log1p(-(states - 1) * tail)

    @jax.jit
    def one(key):
        drawn = categorical.draw(jax.random.split(key, rows), jnp.tile(jnp.asarray(logits), (rows, 1)))
        return (drawn != 0).sum()

    return sum(int(one(key)) for key in jax.random.split(jax.random.key(0), draws // rows))


@pytest.mark.slow
@pytest.mark.parametrize(("exponent", "expected", "lowest", "highest"), [(22, 200, 165, 242), (25, 25, 10, 42)])
def test_rare_tokens_win_as_often_as_they_should(exponent, expected, lowest, highest):
    """mathematics.md E.4: 200 +- 14 at 2^-22, where a float32 Gumbel gives about 150; 25 at 2^-25, where it gives about
    5."""
    assert 204_800 * 4095 * 2.0**-exponent == pytest.approx(expected, rel=0.01)
    assert lowest <= tail_draws(exponent) <= highest


def test_tail_of_one_in_a_billion():
    """50 256 tokens of probability 1e-9 each beside one of nearly 1: the realised law, computed exactly."""
    for head in (0, 30_000, 50_256):
        logits = np.full(50_257, np.log(1e-9), np.float32)
        logits[head] = np.log1p(-50_256e-9)
        law, want = effective_law(logits), exact_law(logits)
        tail = np.arange(50_257) != head
        assert law[tail].sum() == pytest.approx(want[tail].sum(), rel=1e-3)
        assert np.abs(law[tail] / want[tail] - 1).max() < 0.08
        elsewhere = np.arange(50_257) // categorical.BLOCK != head // categorical.BLOCK
        assert np.abs(law[elsewhere] / want[elsewhere] - 1).max() < 1e-3


@pytest.mark.parametrize("kind", ["zipf", "gaussian"])
def test_law_at_the_size_of_a_real_vocabulary(kind):
    """Total variation of the realised law at 50257 tokens: below the 7e-6 of mathematics.md E.4; entropy unchanged."""
    states = 50_257
    if kind == "zipf":
        logits = -np.log(np.arange(states) + 2.7)
    else:
        logits = 3 * np.random.default_rng(0).normal(size=states)
    logits = logits.astype(np.float32)
    law, want = effective_law(logits), exact_law(logits)
    assert 0.5 * np.abs(law - want).sum() < 7.5e-6
    entropy = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (law, want)]
    assert abs(entropy[0] - entropy[1]) < 1e-4


@pytest.mark.slow
def test_draws_follow_the_realised_law():
    rng = np.random.default_rng(1)
    for states in (3, 700):
        logits = (2 * rng.normal(size=states)).astype(np.float32)
        rows = 40_000
        keys = jax.random.split(jax.random.key(states), rows)
        tiled = jnp.tile(jnp.asarray(logits), (rows, 1))
        drawn = np.asarray(jax.jit(categorical.draw)(keys, tiled))
        expected = effective_law(logits) * rows
        common = expected > 8
        counts = np.bincount(drawn, minlength=states)
        statistic = ((counts - expected)[common] ** 2 / expected[common]).sum()
        assert abs(statistic - common.sum()) < 4.5 * np.sqrt(2 * common.sum())


@pytest.mark.slow
@pytest.mark.parametrize("states", [1, 2, 255, 256, 257, 1000])
def test_impossible_tokens_and_extreme_words(states):
    """A category of probability 0 is never drawn, the integer masses always fill the range, certainty is
    certain."""
    rng = np.random.default_rng(states)
    masses = rng.exponential(size=(64, states)).astype(np.float32) ** 8
    masses[rng.random(masses.shape) < 0.5] = 0
    masses[:, 0] += np.float32(1e-30)
    counts = np.asarray(categorical.integer_masses(jnp.asarray(masses)))
    assert (counts.sum(-1, dtype=np.uint64) == FULL).all()
    assert not counts[masses == 0].any()
    logits = jnp.where(jnp.arange(states) == states - 1, 0.0, -jnp.inf)
    drawn = categorical.draw(jax.random.split(jax.random.key(0), 50), jnp.tile(logits, (50, 1)))
    assert (drawn == states - 1).all()
    for word in (0, 1, FULL - 1, FULL):
        picked = categorical._pick(jnp.asarray(masses), jnp.full((64,), word, jnp.uint32))
        assert (np.take_along_axis(masses, np.asarray(picked)[:, None], 1) > 0).all()


def test_a_row_depends_on_its_own_key_only():
    logits = jax.random.normal(jax.random.key(0), (20, 300))
    keys = jax.random.split(jax.random.key(1), 20)
    together = categorical.draw(keys, logits)
    assert (together[7:11] == categorical.draw(keys[7:11], logits[7:11])).all()
    assert (together == jax.jit(categorical.draw)(keys, logits)).all()


@pytest.mark.slow
def test_bfloat16_logits_are_widened():
    logits = jax.random.normal(jax.random.key(0), (5, 40)).astype(jnp.bfloat16)
    keys = jax.random.split(jax.random.key(1), 5)
    assert (categorical.draw(keys, logits) == categorical.draw(keys, logits.astype(jnp.float32))).all()


def test_uniforms_fill_the_open_interval():
    u = np.asarray(categorical.uniform(jnp.array([0, 1, 2**31, FULL], jnp.uint32)))
    assert 0 < u[0] < u[1] < 2**-31 and u[2] == 0.5 and u[3] < 1


def test_nucleus_is_the_smallest_set():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]))
    for top_p, kept in ((0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4)):
        cut = np.isfinite(np.asarray(categorical.nucleus(logits, top_p)))
        assert (cut.sum(-1) == kept).all()
        assert cut[0, :kept].all() and cut[1, 4 - kept :].all()


@pytest.mark.slow
def test_temperature_before_nucleus_and_as_a_function_of_t():
    """p ~ q^(1/T); T = 0 is the mode; T a function of t; the nucleus is taken of the tempered law."""
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    rows = 20_000
    keys = jax.random.split(jax.random.key(0), rows)
    features = jnp.tile(logits, (rows, 1))
    x_t = jnp.zeros((rows,), jnp.int32)
    t = jnp.where(jnp.arange(rows) < rows // 2, 0.25, 1.0)

    def frequencies(**options):
        drawn = np.asarray(from_logits(lambda x, t: x, **options).draw(keys, features, x_t, t))
        return np.stack([np.bincount(part, minlength=3) / len(part) for part in np.split(drawn, 2)])

    def tempered(temperature):
        p = np.array([0.5, 0.3, 0.2]) ** (1 / temperature)
        return p / p.sum()

    np.testing.assert_allclose(frequencies(temperature=0.5), np.tile(tempered(0.5), (2, 1)), atol=0.02)
    by_time = frequencies(temperature=lambda t: 2.0 * t)
    np.testing.assert_allclose(by_time, [tempered(0.5), tempered(2.0)], atol=0.02)
    np.testing.assert_allclose(frequencies(temperature=0.0), [[1, 0, 0]] * 2)
    # 0.25 / 0.38 = 0.66 of the tempered law is in token 0, 0.5 of the plain one.
    np.testing.assert_allclose(frequencies(temperature=0.5, top_p=0.6), [[1, 0, 0]] * 2)
    assert (frequencies(suppress=0)[:, 0] == 0).all()


@pytest.mark.parametrize(
    ("options", "line"), [({"temperature": -1.0}, "temperature = -1"), ({"top_p": 0.0}, "top_p = 0")]
)
def test_bad_options(options, line):
    with pytest.raises(ValueError, match=line):
        from_logits(lambda x, t: x, **options)
