"""Properties of the denoiser: symmetries, precision, dropout, initial values, and what each option does."""

import dataclasses
import functools

import chex
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_jax.models import layers
from dfm_jax.models.elementwise import add_gated
from dfm_jax.models.transformer import Block, Transformer, TransformerConfig
from dfm_jax.optim import make_optimizer
from kernels.attention.rotary import rotate

SMALL = TransformerConfig(vocab_size=37, hidden_size=32, cond_dim=16, length=12, n_blocks=2, n_heads=2, dropout=0.25)
seeds = st.integers(0, 2**31 - 1)


def perturbed(config: TransformerConfig, seed: int = 0) -> Transformer:
    """A model none of whose gates, modulations or head is zero any more."""
    model = Transformer(config, rngs=nnx.Rngs(seed))
    leaves, tree = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [x + 0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, leaves)


@functools.cache
def small_model() -> Transformer:
    return perturbed(SMALL)


def batch(seed: int | jax.Array = 0, rows: int = 4, length: int = 12) -> tuple[jax.Array, jax.Array]:
    key_x, key_t = jax.random.split(jax.random.key(seed))
    return jax.random.randint(key_x, (rows, length), 0, 37), jax.random.uniform(key_t, (rows,))


@jax.jit
def evaluate(model, x_t, t):
    return model.logits(model(x_t, t))


@jax.jit
def train(model, x_t, t, keys):
    return model(x_t, t, dropout_keys=keys)


@jax.jit
def _permuted(model, seed, order):
    x_t, t = batch(seed)
    before = model.logits(model(x_t[order], t[order]))
    return before, model.logits(model(x_t, t))[order]


@pytest.mark.slow
@given(seed=seeds, order=st.permutations(range(4)))
def test_a_permutation_of_the_batch_permutes_the_output(seed, order):
    before, after = _permuted(small_model(), np.uint32(seed), np.array(order))
    chex.assert_trees_all_close(before, after, rtol=0, atol=1e-5)


@given(seed=seeds)
def test_a_block_with_zero_gates_is_the_identity(seed):
    x, same = _through_a_block(_fresh_block(), np.uint32(seed))
    chex.assert_trees_all_equal(x, same)


@functools.cache
def _fresh_block() -> Block:
    return Block(SMALL, jax.random.key(0))


@jax.jit
def _through_a_block(block, seed):
    key_x, key_c = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(key_x, (2, 5, 32))
    return x, block(x, jax.random.normal(key_c, (2, 16)), layers.rotary_tables(5, 16), None)


def test_a_new_model_is_its_normed_embedding_and_has_zero_logits():
    model = Transformer(SMALL, rngs=nnx.Rngs(0))
    x_t, t = batch()
    features = model(x_t, t)
    nothing = jnp.zeros((len(x_t), 1, 32))
    normed = layers.LayerNorm(32)(model.embedding(x_t), nothing, nothing, jnp.float32)
    chex.assert_trees_all_close(features, normed, rtol=1e-6, atol=1e-6)
    assert not evaluate(model, x_t, t).any()


@pytest.mark.slow
def test_initial_distributions():
    """Linear: U(-1/sqrt(in), 1/sqrt(in)), weight and bias. Embedding: N(0, 1). Modulations and head: zero."""
    model = Transformer(dataclasses.replace(SMALL, vocab_size=5000), rngs=nnx.Rngs(0))
    table = model.embedding.table[...]
    assert table.shape == (5120, 32) and not table[5000:].any()
    assert abs(float(table[:5000].std()) - 1) < 0.01
    blocks = model.blocks
    for linear, size in [
        (blocks.qkv, 32),
        (blocks.mlp_up, 32),
        (blocks.mlp_down, 128),
        (model.time_embedding.hidden, 256),
    ]:
        kernel, bound = linear.kernel[...], size**-0.5
        assert 0.98 * bound < float(jnp.abs(kernel).max()) <= bound
        assert abs(float(kernel.std()) * 3**0.5 / bound - 1) < 0.05
    assert float(jnp.abs(blocks.mlp_up.bias[...]).max()) > 0.9 * 32**-0.5
    assert not jnp.array_equal(blocks.qkv.kernel[0], blocks.qkv.kernel[1])
    zero = (blocks.modulation, model.final_modulation, model.head)
    assert not any(leaf.any() for leaf in jax.tree.leaves(zero))


@pytest.mark.slow
def test_attention_is_full():
    """The last token moves the first position, so a prefix is not the sequence of its tokens alone."""
    x_t, t = batch()
    changed = x_t.at[:, -1].set((x_t[:, -1] + 1) % 37)
    whole = evaluate(small_model(), x_t, t)
    assert float(jnp.abs(evaluate(small_model(), changed, t) - whole)[:, 0].max()) > 1e-3
    assert float(jnp.abs(evaluate(small_model(), x_t[:, :7], t) - whole[:, :7]).max()) > 1e-3


def test_a_prefix_stands_alone_where_attention_is_silent():
    model = small_model()
    out = model.blocks.attention_out.kernel[...]
    silent = nnx.clone(model)
    silent.blocks.attention_out.kernel = nnx.Param(jnp.zeros_like(out))
    x_t, t = batch()
    chex.assert_trees_all_close(evaluate(silent, x_t[:, :7], t), evaluate(silent, x_t, t)[:, :7], rtol=0, atol=1e-5)


@given(seed=seeds, distance=st.integers(-20, 20), start=st.integers(20, 40), shift=st.integers(0, 60))
def test_rotary_depends_on_relative_position(seed, distance, start, shift):
    q, k = np.asarray(_rotated(np.uint32(seed)))
    here, there = q[start] @ k[start + distance], q[start + shift] @ k[start + shift + distance]
    np.testing.assert_allclose(here, there, rtol=0, atol=1e-4)


@jax.jit
def _rotated(seed):
    """A random query and key as they are at each of 128 positions, (2, 128, 16)."""
    x = jax.random.normal(jax.random.key(seed), (2, 1, 1, 16))
    return rotate(jnp.broadcast_to(x, (2, 128, 1, 16)), layers.rotary_tables(128, 16))[:, :, 0]


def test_bfloat16_agrees_to_its_precision():
    model = small_model()
    x_t, t = batch(rows=8)
    exact = evaluate(model, x_t, t)
    for options in ({"compute_dtype": "bfloat16"}, {"compute_dtype": "bfloat16", "residual_dtype": "bfloat16"}):
        rounded = jax.tree.unflatten(
            jax.tree.structure(Transformer(dataclasses.replace(SMALL, **options), rngs=nnx.Rngs(0))),
            jax.tree.leaves(model),
        )
        logits = evaluate(rounded, x_t, t)
        assert logits.dtype == jnp.float32
        assert jax.eval_shape(rounded, x_t, t).dtype == jnp.float32
        error = jnp.linalg.norm(logits - exact) / jnp.linalg.norm(exact)
        assert 1e-4 < float(error) < 4 * 2**-8
        # Not rounded on the way to the log-softmax.
        assert jnp.any(logits.astype(jnp.bfloat16).astype(jnp.float32) != logits)


@pytest.mark.slow
def test_dropout_of_a_row_is_its_own():
    """The same keys give the same rows, however the batch is cut; other keys give other rows."""
    x_t, t = batch()
    keys = jax.random.split(jax.random.key(3), 4)
    whole = train(small_model(), x_t, t, keys)
    parts = [train(small_model(), x_t[i : i + 2], t[i : i + 2], keys[i : i + 2]) for i in (0, 2)]
    chex.assert_trees_all_close(jnp.concatenate(parts), whole, rtol=0, atol=1e-5)
    same = train(small_model(), jnp.repeat(x_t[:1], 4, 0), jnp.repeat(t[:1], 4), keys)
    assert float(jnp.abs(same[0] - same[1]).max()) > 1e-2


def test_dropout_keeps_the_mean_and_its_rate():
    keys = jax.random.split(jax.random.key(0), 4)
    kept = jax.jit(lambda: layers.dropout_mask(keys, (100, 250), 0.1))()
    x = jnp.ones(kept.shape)
    dropped = add_gated(jnp.zeros_like(x), jnp.ones((4, 1, 250)), x, None, kept, 0.1)
    np.testing.assert_allclose((dropped == 0).mean(), 0.1, atol=4 * (0.09 / x.size) ** 0.5)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.9, rtol=1e-6)
    assert not jnp.array_equal(dropped[0], dropped[1])


def test_blocks_drop_independently():
    from dfm_jax.models.transformer import _block_keys

    keys = jax.random.split(jax.random.key(0), 3)
    data = jax.random.key_data(jnp.stack([_block_keys(keys, jnp.uint32(i)) for i in range(4)]))
    assert len(np.unique(data.reshape(-1, data.shape[-1]), axis=0)) == 4 * 3 * 2


def test_without_keys_nothing_is_dropped():
    x_t, t = batch()
    model = small_model()
    assert SMALL.dropout > 0
    chex.assert_trees_all_equal(train(model, x_t, t, None), train(model, x_t, t, None))
    no_rate = jax.tree.unflatten(
        jax.tree.structure(Transformer(dataclasses.replace(SMALL, dropout=0.0), rngs=nnx.Rngs(0))),
        jax.tree.leaves(model),
    )
    keys = jax.random.split(jax.random.key(0), 4)
    chex.assert_trees_all_close(train(no_rate, x_t, t, keys), train(model, x_t, t, None), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_padded_rows_stay_zero(tied):
    """Not drawn, no logits, no gradient, and weight decay leaves them where they are."""
    config = dataclasses.replace(SMALL, tie_embeddings=tied)
    model = Transformer(config, rngs=nnx.Rngs(0))
    x_t, t = batch()
    optimizer = make_optimizer(lr=1e-2, warmup=1)
    opt_state = optimizer.init(model)
    assert model.logits(model(x_t, t)).shape == (4, 12, 37)
    assert model.head_kernel().shape == (32, 128) and model.head_bias().shape == (128,)

    @jax.jit
    def update(model, opt_state, step):
        def loss(model):
            return -jax.nn.log_softmax(model.logits(model(x_t, t)))[..., 0].mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(model), opt_state, model, step=step)
        return optax.apply_updates(model, updates), opt_state

    for step in (1, 2):
        model, opt_state = update(model, opt_state, step)
    for rows in (model.embedding.table[...], model.head_kernel().T, model.head_bias()):
        assert rows[:37].any() and not rows[37:].any()


def test_a_suppressed_state_has_no_probability():
    x_t, t = batch()
    features = small_model()(x_t, t)
    plain, suppressed = small_model().logits(features), small_model().logits(features, suppress=36)
    assert jnp.all(suppressed[..., 36] == -jnp.inf)
    chex.assert_trees_all_equal(suppressed[..., :36], plain[..., :36])


def test_time_scale_multiplies_the_time():
    x_t, t = batch()
    scaled = perturbed(dataclasses.replace(SMALL, time_scale=1000.0))
    chex.assert_trees_all_close(evaluate(scaled, x_t, t), evaluate(small_model(), x_t, 1000.0 * t), rtol=0, atol=1e-4)


def test_time_conditioning_off_is_blind_to_time():
    x_t, t = batch()
    blind = perturbed(dataclasses.replace(SMALL, time_conditioning=False))
    chex.assert_trees_all_equal(evaluate(blind, x_t, t), evaluate(blind, x_t, 1 - t))
    chex.assert_trees_all_close(
        evaluate(blind, x_t, t), evaluate(small_model(), x_t, jnp.zeros_like(t)), rtol=0, atol=1e-5
    )


def test_qk_norm_takes_out_the_queries_size():
    x_t, t = batch()
    model = perturbed(dataclasses.replace(SMALL, qk_norm=True))
    larger = nnx.clone(model)
    larger.blocks.qkv.kernel = nnx.Param(model.blocks.qkv.kernel[...].at[:, :, :2].multiply(3.0))
    chex.assert_trees_all_close(evaluate(larger, x_t, t), evaluate(model, x_t, t), rtol=0, atol=1e-4)


def test_tied_embeddings_are_one_matrix():
    model = Transformer(dataclasses.replace(SMALL, tie_embeddings=True), rngs=nnx.Rngs(0))
    chex.assert_trees_all_equal(model.head_kernel(), model.embedding.table[...].T)
    x_t, t = batch(rows=16)
    others = np.asarray(evaluate(model, x_t, t))[np.asarray(x_t)[..., None] != np.arange(37)]
    np.testing.assert_allclose(others.std(), 1.0, rtol=0.2)


def test_one_trace_serves_every_model_and_batch():
    traced = jax.jit(chex.assert_max_traces(lambda model, x_t, t: model(x_t, t), 1))
    for seed in range(3):
        traced(perturbed(SMALL, seed), *batch(seed))


@pytest.mark.parametrize(
    ("x_t", "t", "names"),
    [((4, 13), (4,), "at most 12"), ((4, 12), (3,), r"t = \(3,\)"), ((12,), (12,), r"x_t = \(12,\)")],
)
def test_refuses_other_shapes(x_t, t, names):
    with pytest.raises(ValueError, match=names):
        small_model()(jnp.zeros(x_t, jnp.int32), jnp.zeros(t))


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_heads", 3), ("n_blocks", 0), ("dropout", 1.0), ("remat", "all"), ("compute_dtype", "float64")],
)
def test_refuses_other_configs(field, value):
    with pytest.raises(ValueError, match=f"{field} = {value}: expected"):
        dataclasses.replace(SMALL, **{field: value})
