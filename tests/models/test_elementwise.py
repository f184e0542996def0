"""What stands between the matrix products: autodiff's values and gradients, and little kept for the backward pass."""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.kernels import target as targets
from dfm_jax.models import elementwise
from dfm_jax.models.elementwise import statistics

B, L, D = 3, 7, 16
# As callables of any arguments: what a custom derivative leaves of a signature says too little to a type checker.
adaptive_norm = cast(Callable, elementwise.adaptive_norm)
biased_gelu = cast(Callable, elementwise.biased_gelu)
add_gated = cast(Callable, elementwise.add_gated)


def draw(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def plain_norm(x, weight, shift, scale, dtype):
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5) * weight[None, None]
    return (x * (1.0 + scale) + shift).astype(dtype)


def plain_gelu(product, bias):
    h = (product + bias.astype(product.dtype)[None, None]).astype(jnp.float32)
    return jax.nn.gelu(h, approximate=True).astype(product.dtype)


def plain_add(x, gate, product, bias, kept, rate):
    h = product if bias is None else product + bias.astype(product.dtype)[None, None]
    h = h.astype(jnp.float32)
    h = h if kept is None else jnp.where(kept, h / (1 - rate), 0.0)
    return (x.astype(jnp.float32) + gate * h).astype(x.dtype)


def norm_arguments(dtype):
    return draw(0, B, L, D, dtype=dtype) + 3, 1 + draw(1, D), draw(2, B, 1, D), draw(3, B, 1, D)


def add_arguments(dtype, *, with_bias=True, with_mask=True):
    bias = draw(3, D) if with_bias else None
    kept = jax.random.bernoulli(jax.random.key(4), 0.7, (B, L, D)) if with_mask else None
    return draw(0, B, L, D), draw(1, B, 1, D), draw(2, B, L, D, dtype=dtype), bias, kept


def compare(ours, theirs, given, differentiable, tolerance):
    """Values bit for bit, gradients of a weighted sum within `tolerance` of the largest."""
    np.testing.assert_array_equal(np.asarray(ours(*given), np.float32), np.asarray(theirs(*given), np.float32))

    def gradients(function):
        weights = draw(9, *function(*given).shape)

        def total(*chosen):
            arguments = list(given)
            for i, value in zip(differentiable, chosen, strict=True):
                arguments[i] = value
            return (function(*arguments).astype(jnp.float32) * weights).sum()

        return jax.grad(total, argnums=tuple(range(len(differentiable))))(*(given[i] for i in differentiable))

    for i, a, b in zip(differentiable, gradients(ours), gradients(theirs), strict=True):
        assert a.dtype == b.dtype == given[i].dtype and a.shape == given[i].shape
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=str(i))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_norm(dtype, tolerance):
    given = norm_arguments(dtype)
    compare(
        lambda *a: adaptive_norm(*a, dtype), lambda *a: plain_norm(*a, dtype), given, (0, 1, 2, 3), tolerance  # pyright: ignore
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_gelu(dtype, tolerance):
    compare(biased_gelu, plain_gelu, (3 * draw(0, B, L, D, dtype=dtype), draw(1, D)), (0, 1), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize(("with_bias", "with_mask"), [(True, True), (True, False), (False, True), (False, False)])
def test_gated_sum(dtype, tolerance, with_bias, with_mask):
    given = add_arguments(dtype, with_bias=with_bias, with_mask=with_mask)
    differentiable = (0, 1, 2, 3) if with_bias else (0, 1, 2)
    compare(lambda *a: add_gated(*a, 0.3), lambda *a: plain_add(*a, 0.3), given, differentiable, tolerance)  # pyright: ignore


def test_nothing_is_kept_in_float32_that_was_not_there():
    """Besides the arguments as they came, the backward pass gets nothing over the length."""
    x = draw(0, B, L, D, dtype=jnp.bfloat16)
    _, weight, shift, scale = norm_arguments(jnp.bfloat16)
    for function, given in (
        (lambda *a: adaptive_norm(*a, jnp.bfloat16), (x, weight, shift, scale)),
        (biased_gelu, (x, draw(1, D))),
        (lambda *a: add_gated(*a, None, 0.0), (x, draw(1, B, 1, D), x, draw(3, D))),
    ):
        _, pullback = jax.vjp(function, *given)
        large = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size >= B * L * D]
        assert large and all(leaf.dtype == jnp.bfloat16 for leaf in large), [leaf.dtype for leaf in large]


def test_sums_over_rows_are_not_rounded():
    # 300 rows of ones need nine bits, bfloat16 has eight.
    ones = jnp.ones((1, 300, D), jnp.bfloat16)
    dbias = jax.grad(lambda b: add_gated(jnp.zeros((1, 300, D)), jnp.ones((1, 1, D)), ones, b, None, 0.0).sum())
    np.testing.assert_array_equal(dbias(jnp.zeros(D)), 300.0)


@pytest.mark.parametrize(("offset", "tolerance"), [(0.0, 1e-6), (3.0, 3e-6), (30.0, 3e-4)])
def test_one_pass_on_a_gpu_gives_the_statistics_of_two(monkeypatch, offset, tolerance):
    x = draw(0, 50, 768) + offset
    mean, root = statistics(x)
    monkeypatch.setattr(targets, "current", lambda: targets.Target("gpu", "a GPU", (9, 0)))
    mean_of_one, root_of_one = statistics(x)
    np.testing.assert_array_equal(mean, mean_of_one)
    np.testing.assert_allclose(root_of_one, root, rtol=tolerance)
    # Of equal entries the variance is none, and not below it.
    assert np.isfinite(statistics(jnp.full((1, 768), 0.1))[1]).all()
