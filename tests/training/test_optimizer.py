"""The optimiser is the reference's AdamW: its schedule, its decay, its clipping, and a state that can be filled."""

import pathlib

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_jax.models.transformer import Transformer, TransformerConfig
from dfm_jax.optim import decayed, get_moments, learning_rate, make_optimizer, set_moments

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
PUBLISHED = {"lr": 3e-4, "warmup": 2500, "n_iters": 1_000_000, "eta_min_ratio": 0.1}
PARAMETERS = {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]]), "bias": jnp.array([0.5, -0.5])}
GRADIENT = {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "bias": jnp.array([12.0, 0.0])}  # norm 13


def test_schedule_is_the_references():
    with np.load(FIXTURES / "lr.npz") as expected:
        rates = jax.jit(lambda steps: learning_rate(steps, **PUBLISHED))(expected["steps"].astype(np.int32))
        np.testing.assert_allclose(rates, expected["lr"], rtol=1e-6)


@given(warmup=st.integers(0, 50), extra=st.integers(0, 50))
def test_schedule_is_finite_for_any_warm_up(warmup, extra):
    """warm-up = the whole run divided by zero in the reference."""
    n_iters = max(warmup + extra, 1)
    rates = np.asarray(learning_rate(np.arange(1, 121), lr=1.0, warmup=warmup, n_iters=n_iters, eta_min_ratio=0.1))
    assert np.isfinite(rates).all() and (rates > 0).all() and (rates <= 1).all()
    if extra:
        np.testing.assert_allclose(rates[n_iters - 1 :], 0.1, rtol=1e-6)


def one_update(**options):
    """Parameters after one update of GRADIENT at rate 1, by plain gradient direction where it can be read off."""
    settings = {"lr": 1e-2, "warmup": 1, "weight_decay": 0.0, "eps": 1e-8} | options
    optimizer = make_optimizer(**settings)
    updates, state = jax.jit(optimizer.update)(GRADIENT, optimizer.init(PARAMETERS), PARAMETERS, step=1)
    return updates, state


@pytest.mark.parametrize("grad_clip", [0, 0.0, None])
def test_no_clipping(grad_clip):
    """Clipping at 0 zeroed the gradients in the reference."""
    _, state = one_update(grad_clip=grad_clip)
    np.testing.assert_allclose(get_moments(state).mu["kernel"], 0.1 * GRADIENT["kernel"], rtol=1e-6)


def test_clipping_by_the_global_norm():
    _, state = one_update(grad_clip=1.3)
    np.testing.assert_allclose(get_moments(state).mu["kernel"], 0.01 * GRADIENT["kernel"], rtol=1e-5)
    np.testing.assert_allclose(get_moments(state).mu["bias"], 0.01 * GRADIENT["bias"], rtol=1e-5)


def test_the_state_has_one_structure():
    structures = {
        jax.tree.structure(make_optimizer(lr=1.0, decay=decay, grad_clip=clip).init(PARAMETERS))
        for decay in ("all", "matrices")
        for clip in (None, 0.0, 1.0)
    }
    assert len(structures) == 1


def test_decay_is_decoupled_and_follows_the_rate():
    plain, _ = one_update()
    everything, _ = one_update(weight_decay=0.5, decay="all")
    matrices, _ = one_update(weight_decay=0.5, decay="matrices")
    for name, parameter in PARAMETERS.items():
        np.testing.assert_allclose(everything[name] - plain[name], -1e-2 * 0.5 * parameter, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(matrices["kernel"], everything["kernel"])
    np.testing.assert_array_equal(matrices["bias"], plain["bias"])


def test_matrices_of_the_model_are_chosen_by_path():
    """Stacked biases and norm scales are 2-D and 3-D, and are not matrices."""
    config = TransformerConfig(37, hidden_size=32, cond_dim=16, n_blocks=2, n_heads=2, qk_norm=True)
    model = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    chosen = {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        for path, decays in jax.tree_util.tree_leaves_with_path(decayed(model, decay="matrices"))
        if decays
    }
    assert chosen == {
        "embedding.table",
        "time_embedding.hidden.kernel",
        "time_embedding.out.kernel",
        "blocks.qkv.kernel",
        "blocks.attention_out.kernel",
        "blocks.mlp_up.kernel",
        "blocks.mlp_down.kernel",
        "blocks.modulation.linear.kernel",
        "final_modulation.linear.kernel",
        "head.kernel",
    }


def test_the_rate_follows_the_step_not_the_count():
    """After a skipped update, or an import, they differ."""
    optimizer = make_optimizer(lr=1.0, warmup=100, weight_decay=0.0, eps=0.0, grad_clip=None)
    updates, state = optimizer.update(GRADIENT, optimizer.init(PARAMETERS), PARAMETERS, step=40)
    assert int(get_moments(state).count) == 1
    np.testing.assert_allclose(updates["kernel"][0, 0], -0.4, rtol=1e-5)


def test_moments_go_in_and_out():
    optimizer = make_optimizer(lr=1e-2, warmup=1)
    moments = optax.ScaleByAdamState(jnp.int32(7), GRADIENT, jax.tree.map(jnp.square, GRADIENT))
    state = set_moments(optimizer.init(PARAMETERS), moments)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(PARAMETERS))
    _, state = optimizer.update(GRADIENT, state, PARAMETERS, step=8)
    assert int(get_moments(state).count) == 8
    np.testing.assert_allclose(
        get_moments(state).mu["bias"], 0.9 * 12 * np.eye(2)[0] + 0.1 * 12 / 13 * np.eye(2)[0], rtol=1e-6
    )


def test_another_optimizer_is_a_name():
    updates, state = one_update(name="lion")
    np.testing.assert_allclose(updates["kernel"], -1e-2 * np.sign(GRADIENT["kernel"]), rtol=1e-6)
    with pytest.raises(ValueError, match="expected adamw"):
        get_moments(state)


@pytest.mark.parametrize(("field", "value"), [("name", "adam"), ("decay", "none")])
def test_refuses_other_values(field, value):
    with pytest.raises(ValueError, match=f"optim.{field} = {value}: expected"):
        make_optimizer(lr=1.0, **{field: value})


def test_exponents_have_a_learning_rate_of_their_own():
    parameters = {"log_exponents": jnp.ones(3), "kernel": jnp.ones(3)}
    gradients = jax.tree.map(jnp.ones_like, parameters)
    optimizer = make_optimizer(lr=1.0, warmup=1, weight_decay=0.0, eps=0.0, exponents_lr=0.1)
    updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters, step=1)
    np.testing.assert_allclose(updates["kernel"], -1.0, rtol=1e-6)
    np.testing.assert_allclose(updates["log_exponents"], -0.1, rtol=1e-6)


@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_exponents_decay_at_their_own_rate_or_not_at_all(decay):
    parameters = {"log_exponents": jnp.ones(3), "kernel": jnp.ones(3)}
    gradients = jax.tree.map(jnp.zeros_like, parameters)
    optimizer = make_optimizer(lr=1.0, warmup=1, weight_decay=0.5, decay=decay, exponents_lr=0.1)
    updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters, step=1)
    np.testing.assert_allclose(updates["kernel"], -0.5, rtol=1e-6)
    np.testing.assert_allclose(updates["log_exponents"], -0.05 if decay == "all" else 0.0, rtol=1e-6)


def test_exponents_are_clipped_apart():
    """Their gradient is mostly noise: a spike of it leaves the network's update as it is, and is cut itself."""
    parameters = {"log_exponents": jnp.ones(2), "kernel": jnp.ones(2)}
    gradients = {"log_exponents": jnp.array([30.0, 40.0]), "kernel": jnp.array([0.3, 0.4])}
    optimizer = make_optimizer(lr=1.0, warmup=1, grad_clip=1.0)
    _, state = optimizer.update(gradients, optimizer.init(parameters), parameters, step=1)
    np.testing.assert_allclose(get_moments(state).mu["kernel"], [0.03, 0.04], rtol=1e-6)
    np.testing.assert_allclose(get_moments(state).mu["log_exponents"], [0.06, 0.08], rtol=1e-6)
