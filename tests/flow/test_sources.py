"""Source laws, and couplings of source and data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow

LAW = np.array([0.5, 0.0, 0.2, 0.29, 0.01])
SOURCES = {"mask": flow.MaskSource(5), "uniform": flow.UniformSource(5), "ramp": flow.CategoricalSource(LAW)}


@pytest.mark.parametrize("name", SOURCES)
def test_draws_follow_the_stated_law(name):
    source, draws = SOURCES[name], 200_000
    x_0 = source.sample(jax.random.key(0), (2, draws // 2))
    assert x_0.shape == (2, draws // 2) and x_0.dtype == jnp.int32
    assert source.num_tokens == source.num_states == (6 if name == "mask" else 5)
    p = np.asarray(source.probs(jnp.arange(source.num_states)), np.float64)
    assert p.sum() == pytest.approx(1, abs=1e-6)
    counts = np.bincount(np.asarray(x_0).ravel(), minlength=source.num_states)
    assert (counts[p == 0] == 0).all()
    assert (np.abs(counts / draws - p) <= 5 * np.sqrt(p * (1 - p) / draws)).all()
    np.testing.assert_allclose(jnp.exp(source.log_probs(jnp.arange(source.num_states))), p, rtol=1e-6)


def test_alias_table_is_the_law_exactly():
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.full(997, 0.05))
    source = flow.CategoricalSource(law)
    keep = source._keep.astype(np.float64) / 2**32
    implied = np.zeros_like(law)
    np.add.at(implied, np.arange(len(law)), keep)
    np.add.at(implied, source._alias, 1 - keep)
    np.testing.assert_allclose(implied / len(law), law, rtol=0, atol=len(law) * 2.0**-32 / len(law))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", SOURCES)
def test_one_key_per_row_makes_rows_independent_of_the_batch(name):
    keys = jax.random.split(jax.random.key(3), 4)
    whole, part = SOURCES[name].sample(keys, (4, 7)), SOURCES[name].sample(keys[1:3], (2, 7))
    np.testing.assert_array_equal(whole[1:3], part)
    with pytest.raises(ValueError, match="expected one key"):
        SOURCES["uniform"].sample(keys, (3, 7))


@pytest.mark.parametrize(
    "call",
    [
        lambda: flow.CategoricalSource([0.5, 0.6]),
        lambda: flow.CategoricalSource([1.5, -0.5]),
        lambda: flow.CategoricalSource([[1.0]]),
        lambda: flow.get_source("gaussian", 5),
        lambda: flow.get_source("categorical", 5),
        lambda: flow.get_source("categorical", 5, probs=[0.5, 0.5]),
        lambda: flow.get_source("mask", 0),
        lambda: flow.get_coupling("optimal"),
        lambda: flow.ConditionalCoupling(prompt_rate=1.5),
    ],
)
def test_bad_input_says_what_is_accepted(call):
    with pytest.raises(ValueError, match="expected"):
        call()


def test_sources_by_name():
    assert flow.get_source("mask", 5) == flow.MaskSource(5) and flow.MaskSource(5).mask_id == 5
    assert flow.get_source("uniform", 5) == flow.UniformSource(5) and flow.UniformSource(5).mask_id is None
    assert flow.get_source("categorical", 5, probs=LAW).vocab_size == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["independent", "conditional"])
def test_coupled_pairs(name):
    source, x_1 = flow.MaskSource(9), jax.random.randint(jax.random.key(0), (500, 8), 0, 9, jnp.int32)
    pair = flow.get_coupling(name).sample(jax.random.key(1), x_1, source)
    np.testing.assert_array_equal(pair.x_0, np.where(pair.fixed, x_1, 9))
    assert not pair.fixed.all(axis=-1).any()
    path = flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
    x_t = path.sample(jax.random.key(2), pair.x_0, x_1, jnp.full(500, 0.3)).x_t
    assert (jnp.where(pair.fixed, x_t == x_1, True)).all()
    loss = flow.uncharged(jnp.full(x_1.shape, jnp.nan), pair.fixed)
    assert (loss[pair.fixed] == 0).all()
    if name == "independent":
        assert not pair.fixed.any()
    else:
        prefix = (jnp.cumsum(pair.fixed, axis=-1) == jnp.arange(1, 9)[None, :]).sum(axis=-1) == pair.fixed.sum(axis=-1)
        assert 0.4 < float(prefix.mean()) < 0.9 and 0.2 < float(pair.fixed.mean()) < 0.7


def test_subsets_of_the_count_form_are_uniform():
    x_1 = jnp.zeros((60_000, 3), jnp.int32)
    masked = np.asarray(flow.mask_uniform_subset(jax.random.key(0), x_1, 7) == 7)
    codes = np.bincount(masked @ np.array([4, 2, 1]), minlength=8) / len(masked)
    expected = np.array([0, 1 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 3])
    np.testing.assert_allclose(codes, expected, atol=0.008)
