"""The fused denoiser draws from the same law as dense posterior logits, for both parametrisations and sources."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dfm_jax import flow
from dfm_jax.flow.samplers.denoiser import Guide
from dfm_jax.models.denoiser import TransformerDenoiser, posterior_logits
from dfm_jax.models.transformer import Transformer, TransformerConfig

V, L = 7, 4


@functools.cache
def make_model(states: int) -> Transformer:
    config = TransformerConfig(states, 16, 8, L, n_blocks=1, n_heads=2)
    model = jax.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)))()
    # Zero-initialised heads would draw uniformly.
    rng = np.random.default_rng(1)
    model = jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape, np.float32), model)
    return model


def make(source_name: str, leave_one_out: bool, **options) -> TransformerDenoiser:
    source = flow.get_source(source_name, V)
    return TransformerDenoiser(
        model=make_model(source.num_states),
        prediction=flow.MixtureDiscreteProbPath(flow.get_scheduler("polynomial", exponent=2.0)).prediction(
            source, "leave_one_out" if leave_one_out else "posterior", suppress_mask=True
        ),
        **options,
    )


def frequencies(denoiser: TransformerDenoiser, x, t, draws: int) -> np.ndarray:
    """(L, S) frequencies of x_1 at the positions of x (1, L)."""
    rows = jnp.tile(denoiser.features(x, t)[0], (draws, 1))
    keys = jax.random.split(jax.random.key(2), draws * L)
    drawn = jax.jit(denoiser.draw)(keys, rows, jnp.tile(x[0], draws), jnp.broadcast_to(t, (draws * L,)))
    drawn = np.asarray(drawn).reshape(draws, L)
    return np.stack([np.bincount(drawn[:, i], minlength=denoiser.model.config.vocab_size) for i in range(L)]) / draws


@pytest.mark.slow
@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_law_is_that_of_the_dense_posterior(source, leave_one_out):
    denoiser = make(source, leave_one_out)
    x = jnp.asarray([[3, 1, V if source == "mask" else 0, V if source == "mask" else 3]], jnp.int32)
    t = jnp.asarray([0.6])
    expected = np.asarray(jax.nn.softmax(posterior_logits(denoiser, x, t), axis=-1))[0]
    draws = 20_000
    found = frequencies(denoiser, x, t, draws)
    bound = 4.5 * np.sqrt(expected * (1 - expected) / draws) + 1e-6
    assert (np.abs(found - expected) < bound).all()
    if source == "mask":
        assert found[:, V].max() == 0
        assert (found[0, 3] == 1 and found[1, 1] == 1) == leave_one_out


@pytest.mark.slow
def test_temperature_and_nucleus():
    plain = make("uniform", True)
    x, t = jnp.asarray([[3, 1, 0, 5]], jnp.int32), jnp.asarray([0.3])
    logits = np.asarray(posterior_logits(plain, x, t))[0]
    best = make("uniform", True, temperature=0.0)
    assert (frequencies(best, x, t, 3).argmax(1) == logits.argmax(1)).all()
    cold = make("uniform", True, temperature=0.5)
    half = make("uniform", True, temperature=lambda t: 0.5 * jnp.ones_like(t))
    expected = np.asarray(jax.nn.softmax(jnp.asarray(logits) / 0.5, axis=-1))
    np.testing.assert_allclose(frequencies(cold, x, t, 20_000), expected, atol=0.015)
    np.testing.assert_array_equal(frequencies(half, x, t, 500), frequencies(cold, x, t, 500))
    narrow = frequencies(make("uniform", True, top_p=0.5), x, t, 500) > 0
    p = np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=-1))
    for row, kept in zip(p, narrow, strict=True):
        order = np.argsort(-row)
        size = int((np.cumsum(row[order]) < 0.5).sum()) + 1
        assert set(np.flatnonzero(kept)) <= set(order[:size])


@pytest.mark.slow
def test_a_row_depends_on_its_own_key_only():
    denoiser = make("uniform", True)
    x, t = jnp.asarray([[3, 1, 0, 5]], jnp.int32), jnp.asarray([0.3])
    rows, keys = denoiser.features(x, t)[0], jax.random.split(jax.random.key(0), L)
    times = jnp.broadcast_to(t, (L,))
    together = denoiser.draw(keys, rows, x[0], times)
    for i in range(L):
        part = slice(i, i + 1)
        assert denoiser.draw(keys[part], rows[part], x[0, part], times[part])[0] == together[i]


EVERYTHING = flow.Needs.DRAWS | flow.Needs.LOG_PROB | flow.Needs.TOP_TWO | flow.Needs.ENTROPY | flow.Needs.AT_GIVEN


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("implementation", ["blocks", "dense"])
def test_answers_are_those_of_the_dense_posterior(source, leave_one_out, implementation):
    """Before temperature and top-p, with a shift at x_t; the draws are those of `draw`."""
    denoiser = make(source, leave_one_out, implementation=implementation, temperature=0.7, top_p=0.9)
    x = jnp.asarray([[3, 1, V if source == "mask" else 0, V if source == "mask" else 3]], jnp.int32)
    t, times = jnp.asarray([0.6]), jnp.full(L, 0.6)
    keys, rows = jax.random.split(jax.random.key(2), L), denoiser.features(x, t)[0]
    given, shift = jnp.asarray([3, 0, 2, 5], jnp.int32), jnp.asarray([0.0, -1.0, 0.5, 0.0])
    asked = jax.jit(lambda: denoiser.answer(keys, rows, x[0], times, EVERYTHING, given, shift))()
    carried = source == "mask" and leave_one_out
    logits = np.array(posterior_logits(denoiser, x, t)[0], np.float64)
    if not carried:  # a shift changes nothing of what is carried over, nor of a suppressed mask
        logits[np.arange(L), np.asarray(x[0])] += np.asarray(shift)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = np.log(p)
        entropy = -np.where(p > 0, p * log_p, 0).sum(-1)
    here = np.arange(L)
    np.testing.assert_allclose(asked.log_prob, log_p[here, np.asarray(asked.x_1)], atol=1e-5)
    np.testing.assert_allclose(asked.at_given, log_p[here, np.asarray(given)], atol=1e-5)
    np.testing.assert_allclose(asked.top_two, np.sort(p)[:, :-3:-1], atol=1e-6)
    np.testing.assert_allclose(asked.entropy, entropy, atol=1e-5)
    plain = denoiser.answer(keys, rows, x[0], times, flow.Needs.DRAWS | flow.Needs.ENTROPY)
    np.testing.assert_array_equal(plain.x_1, denoiser.draw(keys, rows, x[0], times))
    assert plain.log_prob is None and plain.top_two is None and plain.at_given is None


def test_guided_features_are_mixed_before_they_are_rounded():
    """Logits gamma f_c + (1 - gamma) f_u of the two inputs: the head is linear."""
    denoiser = make("mask", True)
    x, t = jnp.asarray([[3, 1, V, V]], jnp.int32), jnp.asarray([0.5])
    without = jnp.where(jnp.arange(L)[None] == 0, V, x)
    guide = Guide(without, jnp.asarray([2.5]))
    found = denoiser.model.logits(denoiser.guided_features(x, t, guide), suppress=V)
    own, other = (denoiser.model.logits(denoiser.features(tokens, t), suppress=V) for tokens in (x, without))
    np.testing.assert_allclose(found[..., :V], 2.5 * own[..., :V] - 1.5 * other[..., :V], atol=1e-5)
    assert (np.abs(np.asarray(own - other)[..., :V]) > 1e-3).any()


@pytest.mark.slow
def test_a_sampler_that_looks_runs_on_a_network():
    """Adaptive unmasking, a corrector and guidance together: the prompt stays, and the trunk runs in pairs."""
    source = flow.MaskSource(V)
    path = flow.MixtureDiscreteProbPath(flow.get_scheduler("polynomial", exponent=2.0))
    fixed = jnp.zeros((3, L), bool).at[:, 0].set(True)
    x = jnp.where(fixed, 2, V)
    solver = flow.Solver(
        make("mask", True), path, source, step="unmask:order=entropy,bound=1", corrector="gibbs:informed=1",
        guidance=2.0,
    )  # fmt: skip
    drawn, evaluations = solver.sample(jax.random.key(0), x, fixed=fixed, return_evaluations=True)
    assert (np.asarray(drawn) < V).all() and (drawn[:, 0] == 2).all()
    assert (np.asarray(evaluations.trunk) % 2 == 0).all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="temperature = -1"):
        make("uniform", False, temperature=-1)
    with pytest.raises(ValueError, match="top_p = 0"):
        make("uniform", False, top_p=0)
