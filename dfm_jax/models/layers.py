"""The denoiser's layers: plain Flax NNX modules whose parameters are float32."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from dfm_jax.models.elementwise import adaptive_norm

TIME_FEATURES = 256


def precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Products asked for in float32 are float32: by default an NVIDIA GPU rounds their operands to TF32."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


class Linear(nnx.Module):
    """x (..., in) -> x @ kernel + bias (..., *out), in `dtype`.

    The kernel is stored (in, *out): an output of several axes, such as (3, D) for queries, keys and values,
    is one matrix product whose parts are free to take and whose last axis can be split over devices.
    """

    def __init__(self, key: Array, size_in: int, size_out: tuple[int, ...], *, bias: bool, zero: bool = False):
        """Draws kernel and bias from U(-1/sqrt(size_in), 1/sqrt(size_in)); `zero` makes them zero instead."""

        def draw(key: Array, shape: tuple[int, ...]) -> nnx.Param:
            if zero:
                return nnx.Param(jnp.zeros(shape, jnp.float32))
            bound = 1 / math.sqrt(size_in)
            return nnx.Param(jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound))

        key_kernel, key_bias = jax.random.split(key)
        self.kernel = draw(key_kernel, (size_in, *size_out))
        self.bias = draw(key_bias, size_out) if bias else None

    def __call__(self, x: Array, dtype: DTypeLike) -> Array:
        bias = None if self.bias is None else self.bias[...]
        return checkpoint_name(affine(x.astype(dtype), self.kernel[...], bias), "product")

    def parts(self, x: Array, dtype: DTypeLike) -> tuple[Array, Array]:
        """The product alone, and the bias (*out,) float32, for the function after it to add."""
        assert self.bias is not None
        return checkpoint_name(affine(x.astype(dtype), self.kernel[...], None), "product"), self.bias[...]


@jax.custom_vjp
def affine(x: Array, kernel: Array, bias: Array | None) -> Array:
    """x (..., in) times kernel (in, *out), plus bias (*out,) if there is one, both rounded to the dtype of x.

    Matrix units accumulate in float32 and round once. The gradients of kernel and bias are not rounded: they leave
    their sums in float32, and so devices and parts of a batch add their shares in float32.
    """
    y = jnp.tensordot(x, kernel.astype(x.dtype), axes=1, precision=precision(x.dtype))
    return y if bias is None else y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)


def _affine_forward(x: Array, kernel: Array, bias: Array | None) -> tuple[Array, tuple[Array, Array, Array | None]]:
    return affine(x, kernel, bias), (x, kernel, bias)


def _affine_backward(kept: tuple[Array, Array, Array | None], dy: Array) -> tuple[Array, Array, Array | None]:
    x, kernel, bias = kept
    rows, out = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1, dy.ndim))
    # Over the output axes, which are the kernel's after its first.
    by_out = (out, tuple(range(1, kernel.ndim))), ((), ())
    dx = jax.lax.dot_general(dy, kernel.astype(x.dtype), by_out, precision=precision(x.dtype))
    by_row = (rows, rows), ((), ())
    dkernel = jax.lax.dot_general(x, dy, by_row, precision=precision(x.dtype), preferred_element_type=kernel.dtype)
    return dx, dkernel, None if bias is None else dy.astype(bias.dtype).sum(rows)


affine.defvjp(_affine_forward, _affine_backward)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + 1e-5) * scale over the last axis, without a bias; then shifted and scaled."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))

    def __call__(self, x: Array, shift: Array, scale: Array, dtype: DTypeLike) -> Array:
        """x (B, L, D) -> norm * (1 + scale) + shift, both (B, 1, D): computed in float32, rounded to `dtype`."""
        return adaptive_norm(x, self.scale[...], shift, scale, dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + 1e-6) * scale over the last axis, in float32: the norm of queries and keys."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)
        return x * jnp.broadcast_to(self.scale[...], x.shape)


class Embedding(nnx.Module):
    """ids (...) int32 -> table[ids] (..., D) float32; `table` (rows, D).

    Only the first `size` rows are drawn, from N(0, stddev^2). The rows above pad the table to a size that
    divides over
    devices: they are zero, no id reaches them, and so they stay zero.
    """

    def __init__(self, key: Array, size: int, rows: int, width: int, *, stddev: float):
        table = stddev * jax.random.normal(key, (size, width), jnp.float32)
        self.table = nnx.Param(jnp.pad(table, ((0, rows - size), (0, 0))))

    def __call__(self, ids: Array) -> Array:
        return jnp.take(self.table[...], ids, axis=0)


class TimeEmbedding(nnx.Module):
    """t (B,) float32 -> SiLU of the time's embedding (B, width) float32.

    256 sinusoids of `time_scale` * t, cosines first, frequencies 10000^(-i/128), i = 0..127; then Linear -
    SiLU - Linear
    - SiLU. On the raw t in [0, 1] (time_scale = 1, as published) these features are nearly collinear
    (relative singular values 1, .07, .006, 2e-4); time_scale = 1000 gives them their range.
    """

    def __init__(self, key: Array, width: int, time_scale: float):
        key_hidden, key_out = jax.random.split(key)
        self.hidden = Linear(key_hidden, TIME_FEATURES, (width,), bias=True)
        self.out = Linear(key_out, width, (width,), bias=True)
        self.time_scale = time_scale

    def __call__(self, t: Array) -> Array:
        half = TIME_FEATURES // 2
        frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(10000.0) / half))
        angles = (t.astype(jnp.float32) * self.time_scale)[:, None] * frequencies[None]
        features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        hidden = jax.nn.silu(self.hidden(features, jnp.float32))
        return jax.nn.silu(self.out(hidden, jnp.float32))


class Modulation(nnx.Module):
    """c (B, width) -> `count` vectors (B, 1, D) float32 that shift, scale or gate; zero at initialisation."""

    def __init__(self, key: Array, width: int, count: int, size: int):
        self.linear = Linear(key, width, (count, size), bias=True, zero=True)

    def __call__(self, c: Array) -> list[Array]:
        vectors = self.linear(c, jnp.float32)
        return [vectors[:, None, i] for i in range(vectors.shape[1])]


def rotary_frequencies(head_dim: int) -> Array:
    """Angle per position of each pair of coordinates: 10000^(-2i/head_dim), (head_dim / 2,) float32."""
    return 1.0 / 10000.0 ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def rotary_tables(length: int, head_dim: int) -> tuple[Array, Array]:
    """Cosines and sines of position * frequency, (length, head_dim / 2) float32 each, for `kernels.rotary`."""
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * rotary_frequencies(head_dim)[None]
    return jnp.cos(angles), jnp.sin(angles)


@jax.named_scope("dropout")
def dropout_mask(keys: Array, shape: tuple[int, ...], rate: float) -> Array:
    """(B, *shape) bool, each entry False with probability `rate`.

    keys: (B,) typed keys. A row's mask depends on its own key alone, hence neither on the batch around it,
    nor on how the batch is cut into microbatches, nor on the mesh.
    """
    bits = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
