"""Attention by cuDNN, which jax.nn calls, and what it needs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..target import Target

CAPABILITY = (8, 0)


def attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(head_dim)) v, (batch, length, heads, head_dim) float16 or bfloat16."""
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def why_not(head_dim: int, dtype: Any, target: Target) -> str | None:
    """What is expected instead, or None where cuDNN takes such heads on `target`."""
    if not target.is_gpu or target.capability is None or target.capability < CAPABILITY:
        return f"expected an NVIDIA GPU of compute capability 8.0 or more (A100, L4, H100, B200, ...), not {target}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"expected bfloat16 or float16, not {jnp.dtype(dtype)}"
    # The backward pass takes wider heads on Hopper alone.
    most = 256 if target.capability == (9, 0) else 128
    if head_dim % 8 or head_dim > most:
        return f"expected head_dim a multiple of 8 up to {most}, not {head_dim}"
    refusal = _refusal(head_dim)
    return None if refusal is None else f"expected an installed cuDNN that takes head_dim {head_dim} (jax: {refusal})"


@functools.cache
def _refusal(head_dim: int) -> str | None:
    """What jax says against cuDNN here, or None.

    jax has no public way to ask for the cuDNN version that it found: its own record is private and differs between jax
    0.10 and 0.12. But it checks while it traces, and raises. So a call is traced on shapes, and nothing runs. It checks
    the GPU of this machine: when compiling for another one, heads wider than 128 are refused.
    """
    x = jax.ShapeDtypeStruct((1, 64, 1, head_dim), jnp.bfloat16)
    try:
        jax.eval_shape(attention, x, x, x)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return " ".join(str(error).split())
    return None
