"""What a block computes between its matrix products: three functions with derivatives of their own.

On a GPU these steps cost what they read and write. Each keeps for the backward pass only what is there anyway, in the
dtype in which it is there: the operand of a norm, the product before its bias, the mask of a dropout. Everything else
is computed again. Sums over the length are taken once, and what else is a sum over rows follows from them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dfm_jax.kernels import target as targets

EPSILON = 1e-5  # of LayerNorm, added to the variance


def statistics(x: Array) -> tuple[Array, Array]:
    """(..., D) float32 -> (..., 1) mean, and 1 / sqrt(variance + 1e-5), over the last axis.

    A GPU takes both in one pass over memory, from the sums of x and x^2: their difference is off by a relative
    (1 + mean^2 / variance) roundings. A CPU keeps a row in its cache, and takes two passes.
    """
    mean = jnp.mean(x, -1, keepdims=True)
    if targets.current().is_gpu:
        variance = jnp.maximum(jnp.mean(jnp.square(x), -1, keepdims=True) - jnp.square(mean), 0.0)
    else:
        variance = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + EPSILON)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def adaptive_norm(x: Array, weight: Array, shift: Array, scale: Array, dtype: DTypeLike) -> Array:
    """LayerNorm of x (B, L, D) by weight (D,), times 1 + scale, plus shift, both (B, 1, D): float32, then `dtype`."""
    return _adaptive_norm_forward(x, weight, shift, scale, dtype)[0]


@jax.named_scope("norm")
def _adaptive_norm_forward(x: Array, weight: Array, shift: Array, scale: Array, dtype: DTypeLike):
    mean, root = statistics(x.astype(jnp.float32))
    unit = (x.astype(jnp.float32) - mean) * root
    y = unit * jnp.broadcast_to(weight, unit.shape)
    return (y * (1.0 + scale) + shift).astype(dtype), (x, mean, root, weight, scale)


@jax.named_scope("norm")
def _adaptive_norm_backward(dtype: DTypeLike, kept: tuple[Array, Array, Array, Array, Array], dy: Array):
    """With u = unit = (x - mean) root: dx = root (v - mean(v) - u mean(u v)), v = dy weight (1 + scale)."""
    del dtype
    x, mean, root, weight, scale = kept
    unit = (x.astype(jnp.float32) - mean) * root
    dy = dy.astype(jnp.float32)
    factor = jnp.broadcast_to(weight, scale.shape) * (1.0 + scale)
    v = dy * factor
    dx = root * (v - jnp.mean(v, -1, keepdims=True) - unit * jnp.mean(v * unit, -1, keepdims=True))
    # Both sums over the length; those of weight and scale differ in what is constant along it.
    dshift, aligned = dy.sum(1, keepdims=True), (dy * unit).sum(1, keepdims=True)
    dweight = (aligned * (1.0 + scale)).sum((0, 1))
    return dx.astype(x.dtype), dweight, dshift, aligned * jnp.broadcast_to(weight, scale.shape)


adaptive_norm.defvjp(_adaptive_norm_forward, _adaptive_norm_backward)


@jax.custom_vjp
@jax.named_scope("activation")
def biased_gelu(product: Array, bias: Array) -> Array:
    """GELU (tanh form, in float32) of product (..., D) + bias (D,), which is rounded to the dtype of the product."""
    return _gelu(_biased(product, bias)).astype(product.dtype)


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _biased(product: Array, bias: Array) -> Array:
    """As a float32 array, from a sum in the dtype of the product."""
    return (product + jnp.broadcast_to(bias.astype(product.dtype), product.shape)).astype(jnp.float32)


def _biased_gelu_forward(product: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return biased_gelu(product, bias), (product, bias)


@jax.named_scope("activation")
def _biased_gelu_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    product, bias = kept
    # Otherwise the compiler finds that the forward pass had computed the same, and keeps it, in float32.
    product = jax.lax.optimization_barrier(product)
    _, pullback = jax.vjp(_gelu, _biased(product, bias))
    (dx,) = pullback(dy.astype(jnp.float32))
    dx = dx.astype(product.dtype)
    return dx, dx.astype(bias.dtype).sum(tuple(range(dx.ndim - 1)))


biased_gelu.defvjp(_biased_gelu_forward, _biased_gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
@jax.named_scope("residual")
def add_gated(x: Array, gate: Array, product: Array, bias: Array | None, kept: Array | None, rate: float) -> Array:
    """x (B, L, D) + gate (B, 1, D) * dropout(product + bias), in float32, in the dtype of x.

    bias (D,), rounded to the dtype of the product, or None; kept (B, L, D) bool, where dropout keeps an entry, to be
    divided by 1 - rate, or None.
    """
    return (x.astype(jnp.float32) + gate * _dropped(product, bias, kept, rate)).astype(x.dtype)


def _dropped(product: Array, bias: Array | None, kept: Array | None, rate: float) -> Array:
    h = product.astype(jnp.float32) if bias is None else _biased(product, bias)
    return h if kept is None else jnp.where(kept, h / (1 - rate), 0.0)


def _add_gated_forward(x: Array, gate: Array, product: Array, bias: Array | None, kept: Array | None, rate: float):
    return add_gated(x, gate, product, bias, kept, rate), (gate, product, bias, kept)


@jax.named_scope("residual")
def _add_gated_backward(rate: float, saved: tuple[Array, Array, Array | None, Array | None], dy: Array):
    gate, product, bias, kept = saved
    wide = dy.astype(jnp.float32)
    dgate = (wide * _dropped(product, bias, kept, rate)).sum(1, keepdims=True)
    masked = wide if kept is None else jnp.where(kept, wide / (1 - rate), 0.0)
    dproduct = (gate * masked).astype(product.dtype)
    # The gate is constant along the length.
    dbias = None if bias is None else (gate * masked.sum(1, keepdims=True)).sum((0, 1))
    return dy, dgate, dproduct, dbias, None


add_gated.defvjp(_add_gated_forward, _add_gated_backward)
