"""Every implementation of attention against the definition in float64, values and gradients."""

import dataclasses
import functools
import importlib.util
import logging
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import programs
from dfm_jax.models.layers import rotary_tables
from dfm_jax.models.transformer import Transformer, TransformerConfig
from kernels import attention as module
from kernels.attention import Blocks, attention, cudnn, operation
from kernels.attention.rotary import rotate
from kernels.target import Target

HERE = tuple(name for name in module.IMPLEMENTATIONS if name != "cudnn")


def definition(q, k, v, tables=None):
    if tables is not None:
        q, k = (turned(x, *tables) for x in (q, k))
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores, -1), v)


def turned(x, cos, sin):
    """Each pair of coordinates as a complex number, times that of its position and frequency."""
    first, second = jnp.split(x, 2, -1)
    z = jax.lax.complex(first, second) * jax.lax.complex(cos, sin)[None, :, None]
    return jnp.concatenate([z.real, z.imag], -1)


def operands(shape, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape) for _ in range(4))


def run(function, q, k, v, cotangent):
    out, pullback = jax.vjp(function, q, k, v)
    return out, *pullback(cotangent.astype(out.dtype))


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("implementation", HERE)
@pytest.mark.parametrize("shape", [(2, 70, 2, 32), (2, 33, 1, 48), (1, 129, 1, 64), (1, 7, 3, 128)])
def test_equals_the_definition(implementation, shape, rotated):
    arrays = operands(shape)
    tables = rotary_tables(shape[1], shape[3]) if rotated else None
    exact = None if tables is None else [np.asarray(table, np.float64) for table in tables]
    with jax.enable_x64(True):
        wanted = jax.jit(lambda *a: run(functools.partial(definition, tables=exact), *a))(*arrays)
        wanted = [np.asarray(x) for x in wanted]
    call = functools.partial(attention, rotary=tables, implementation=implementation)
    found = jax.jit(lambda *a: run(call, *a))(*(jnp.asarray(x, jnp.float32) for x in arrays))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()), rtol=0)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("implementation", HERE)
def test_bfloat16(implementation, rotated):
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in operands((1, 70, 2, 64))]
    tables = rotary_tables(70, 64) if rotated else None
    exact = functools.partial(definition, tables=tables)
    wanted = jax.jit(lambda *a: run(exact, *a))(*(x.astype(jnp.float32) for x in arrays))
    call = functools.partial(attention, rotary=tables, implementation=implementation)
    found = jax.jit(lambda *a: run(call, *a))(*arrays)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * max(1.0, float(jnp.abs(b).max())), rtol=0)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", HERE)
def test_rotation_is_rounded_once(implementation):
    """float32 queries and keys beside bfloat16 values, as a norm leaves them: bitwise as rotated and rounded before."""
    q, k, v = (jnp.asarray(x, jnp.float32) for x in operands((1, 20, 1, 32))[:3])
    v, tables = v.astype(jnp.bfloat16), rotary_tables(20, 32)
    found = attention(q, k, v, rotary=tables, implementation=implementation)
    rounded = (rotate(x, tables).astype(jnp.bfloat16) for x in (q, k))
    np.testing.assert_array_equal(found, attention(*rounded, v, implementation=implementation))
    assert found.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="q, k, v = dtypes float32, float32, bfloat16: expected one"):
        attention(q, k, v, implementation=implementation)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", HERE)
def test_two_runs_are_bitwise_equal_and_tables_are_constants(implementation):
    *arrays, cotangent = (jnp.asarray(x, jnp.float32) for x in operands((2, 70, 2, 48)))

    @jax.jit
    def once(q, k, v, tables):
        call = functools.partial(attention, implementation=implementation)
        out, pullback = jax.vjp(lambda q, k, v, tables: call(q, k, v, rotary=tables), q, k, v, tables)
        return out, pullback(cotangent)

    first, second = (once(*arrays, rotary_tables(70, 48)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert all(not np.any(table) for table in first[1][3])
    assert all(np.any(gradient) for gradient in first[1][:3])


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (
            rotary_tables(9, 32),
            r"rotary = float32\[9, 16\], float32\[9, 16\]: expected cosines and sin.* 8 positions",
        ),
        (rotary_tables(8, 64), r"float32\[8, 32\]: expected .* here 32"),
        (rotary_tables(8, 32)[:1], r"rotary = float32\[8, 16\]: expected"),
        (tuple(x.astype(jnp.bfloat16) for x in rotary_tables(8, 32)), r"bfloat16\[8, 16\]: expected .*float32"),
    ],
)
def test_tables_of_another_shape_are_refused(tables, said):
    q = jnp.zeros((1, 8, 1, 32))
    with pytest.raises(ValueError, match=said):
        attention(q, q, q, rotary=tables)


def test_flash_keeps_large_scores_and_any_block():
    """Scores of 1e4, where exponentials without a running maximum overflow; tiles of 128 against tiles of 64."""
    q, k, v = (jnp.asarray(100 * x, jnp.float32) for x in operands((1, 130, 1, 32))[:3])
    wanted = attention(q, k, v, implementation="xla")
    for blocks in (Blocks(), Blocks(q=128, kv=64), Blocks(q=64, kv=128)):
        found = attention(q, k, v, implementation="pallas", blocks=blocks)
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-2)
    with pytest.raises(ValueError, match="q = 96: expected a multiple of 64"):
        Blocks(q=96)


@pytest.mark.slow
def test_the_model_trains_with_it():
    """The denoiser's gradient through the interpreted kernel, under scan over its blocks, is that through xla."""
    config = TransformerConfig(
        vocab_size=11, hidden_size=32, cond_dim=8, length=10, n_blocks=2, n_heads=1, dropout=0.0, mlp_ratio=1
    )
    tokens = jnp.arange(20, dtype=jnp.int32).reshape(2, 10) % 11

    def gradient(name):
        model = Transformer(dataclasses.replace(config, attention=name), rngs=nnx.Rngs(0))
        # Gates and modulation are zero at first, and so would be what attention does.
        leaves, tree = jax.tree.flatten(model)
        noise = [0.1 * jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
        model = jax.tree.unflatten(tree, [x + y for x, y in zip(leaves, noise, strict=True)])
        # The features are normed: a sum of their squares would have no gradient.
        weights = jax.random.normal(jax.random.key(1), (2, 10, 32))
        loss = jax.jit(jax.grad(lambda m: (weights * m(tokens, jnp.asarray([0.2, 0.7]))).sum()))
        return jax.tree.leaves(loss(model))

    for a, b in zip(gradient("pallas"), gradient("xla"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.slow
def test_flash_compiles_for_hopper_without_spills():
    """Forward and backward for sm_90a, on a machine without a GPU, plain and with rotation in the loads."""
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        pytest.skip("needs jax's CUDA plugin (`pip install jax-cuda12-plugin jax-cuda12-pjrt`)")
    script = pathlib.Path(__file__).with_name("flash_for_hopper.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False,
        env=programs.environment(JAX_PLATFORMS="cpu", XLA_FLAGS="", MOSAIC_GPU_DUMP_PTXAS="1"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    output = done.stdout + done.stderr
    assert output.count(" 0 bytes spill stores, 0 bytes spill loads") == 3 * 6, output[-3000:]
    assert "spilled" not in output


def test_the_choice_is_by_platform_and_logged_once(caplog):
    operation._log_choice.cache_clear()
    q, k, v = (jnp.asarray(x, jnp.float32) for x in operands((1, 8, 1, 32))[:3])
    with caplog.at_level(logging.INFO, logger="kernels.attention"):
        np.testing.assert_array_equal(attention(q, k, v), attention(q, k, v, implementation="xla"))
        attention(q, k, v)
    assert [r.getMessage() for r in caplog.records] == ["attention: xla (cpu, float32, head_dim 32)"]


CPU, A100 = Target("cpu", "cpu"), Target("gpu", "NVIDIA A100-SXM4-80GB", (8, 0))
H100, B200, V100 = (Target("gpu", name, c) for name, c in (("H100", (9, 0)), ("B200", (10, 0)), ("V100", (7, 0))))
AMD = Target("gpu", "AMD Instinct MI300X")


@pytest.mark.parametrize(
    ("implementation", "target", "dtype", "head_dim", "reason"),
    [
        ("cudnn", CPU, jnp.bfloat16, 64, "capability 8.0 or more (A100, L4, H100, B200, ...), not cpu"),
        ("cudnn", V100, jnp.bfloat16, 64, "capability 8.0 or more (A100, L4, H100, B200, ...), not V100 of compute"),
        ("cudnn", AMD, jnp.bfloat16, 64, "not AMD Instinct MI300X of unknown compute capability"),
        ("cudnn", H100, jnp.float32, 64, "expected bfloat16 or float16, not float32"),
        ("cudnn", H100, jnp.bfloat16, 36, "expected head_dim a multiple of 8 up to 256, not 36"),
        ("cudnn", A100, jnp.bfloat16, 136, "expected head_dim a multiple of 8 up to 128, not 136"),
        ("cudnn", B200, jnp.bfloat16, 256, "expected head_dim a multiple of 8 up to 128, not 256"),
        ("cudnn", H100, jnp.bfloat16, 256, None),
        ("cudnn", A100, jnp.bfloat16, 64, None),
        ("cudnn", B200, jnp.float16, 128, None),
        ("pallas", CPU, jnp.float32, 16, "expected head_dim 32 to 128, not 16"),
        ("pallas", CPU, jnp.float32, 64, None),
        ("pallas", H100, jnp.float32, 64, "expected bfloat16 or float16 on a GPU, not float32"),
        ("pallas", H100, jnp.bfloat16, 64, None),
        (
            "pallas",
            A100,
            jnp.bfloat16,
            64,
            "H200, GH200), not NVIDIA A100-SXM4-80GB of compute capability 8.0",
        ),
        ("pallas", B200, jnp.bfloat16, 64, "9.0 (H100, H200, GH200), not B200 of compute capability 10.0"),
        ("pallas", AMD, jnp.bfloat16, 64, "9.0 (H100, H200, GH200), not AMD"),
        ("xla", CPU, jnp.float32, 5, None),
        ("xla", V100, jnp.bfloat16, 64, None),
        ("flash", H100, jnp.bfloat16, 64, "expected xla, cudnn, pallas"),
    ],
)
def test_what_each_needs(monkeypatch, implementation, target, dtype, head_dim, reason):
    monkeypatch.setattr(cudnn, "_refusal", lambda head_dim: None)
    found = module.why_not(implementation, head_dim=head_dim, dtype=dtype, target=target)
    assert (found is None) if reason is None else reason in found


def test_without_cudnn_the_choice_is_another(monkeypatch):
    """Where jax finds none, it says so while it traces; that is what the probe reports, on every jax."""

    def refuse(*_):
        raise RuntimeError("cuDNN not\nfound.")

    cudnn._refusal.cache_clear()
    monkeypatch.setattr(cudnn, "attention", refuse)
    said = module.why_not("cudnn", head_dim=64, target=H100)
    cudnn._refusal.cache_clear()
    assert said == "expected an installed cuDNN that takes head_dim 64 (jax: cuDNN not found.)"
    monkeypatch.setattr(operation.targets, "current", lambda: A100)
    monkeypatch.setattr(cudnn, "why_not", lambda *_: said)
    q = jnp.ones((1, 8, 1, 32), jnp.bfloat16)
    np.testing.assert_array_equal(attention(q, q, q), attention(q, q, q, implementation="xla"))
    with pytest.raises(ValueError, match=r"implementation = 'pallas': expected a GPU of compute capability 9\.0"):
        attention(q, q, q, implementation="pallas")


def test_an_impossible_choice_names_its_limit():
    q = jnp.zeros((1, 8, 1, 32), jnp.bfloat16)
    with pytest.raises(
        ValueError, match=r"implementation = 'cudnn': expected an NVIDIA GPU of compute capability 8\.0"
    ):
        attention(q, q, q, implementation="cudnn")
    with pytest.raises(ValueError, match="implementation = 'flash': expected xla, cudnn, pallas"):
        attention(q, q, q, implementation="flash")
    with pytest.raises(ValueError, match="expected one shape"):
        attention(q, q[:, :4], q)
