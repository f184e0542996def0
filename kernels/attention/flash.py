"""Flash attention in Pallas, forward and backward.

The forward kernel also returns the log-sum-exp of each row, and the backward kernels use it. `tiles.py` has the
arithmetic of a tile, `flash_gpu.py` runs it on a GPU and `flash_interpreted.py` on anything else.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..target import Target
from . import rotary
from .tiles import Blocks, Call

HEAD_DIMS = (32, 128)
CAPABILITY = (9, 0)


def why_not(head_dim: int, dtype: Any, target: Target) -> str | None:
    """What is expected instead, or None where the kernels take such heads on `target`."""
    if not HEAD_DIMS[0] <= head_dim <= HEAD_DIMS[1]:
        return f"expected head_dim {HEAD_DIMS[0]} to {HEAD_DIMS[1]}, not {head_dim}"
    if not target.is_gpu:
        return None  # interpreted
    if target.capability != CAPABILITY:
        return f"expected a GPU of compute capability 9.0 (H100, H200, GH200), not {target}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"expected bfloat16 or float16 on a GPU, not {jnp.dtype(dtype)}"
    return None


def flash_attention(
    q: Array, k: Array, v: Array, tables: rotary.Tables | None = None, *, blocks: Blocks | None = None, interpret: bool
) -> Array:
    """softmax(q k^T / sqrt(head_dim)) v, (batch, length, heads, head_dim) float16, bfloat16 or (interpreted) float32.

    q and k are first rotated by `tables`, if given; no gradient flows to these. The length is free: the last tile is
    padded with zeros and masked. Statistics and sums are float32.
    """
    blocks = Blocks() if blocks is None else blocks
    length, head_dim = q.shape[1], q.shape[3]
    # The matrix unit reads 64 columns at a time from shared memory. Columns of zeros change no product.
    rows, columns = -length % math.lcm(blocks.q, blocks.kv), -head_dim % 64

    def padded(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, rows), (0, 0), (0, columns)))

    def padded_by_half(x: Array) -> Array:
        # Rotation pairs column i with the one half a tile away, so each half is padded. A score does not depend on the
        # order of columns.
        halves = jnp.pad(x.reshape(*x.shape[:3], 2, -1), ((0, 0), (0, rows), (0, 0), (0, 0), (0, columns // 2)))
        return halves.reshape(*halves.shape[:3], -1)

    call = Call(blocks, length, head_dim**-0.5, interpret)
    if tables is None:
        operands = padded(q), padded(k), padded(v), None
    else:
        cos, sin = (jnp.pad(table, ((0, rows), (0, columns // 2))) for table in tables)
        operands = padded_by_half(q), padded_by_half(k), padded(v), (cos, sin)
    out: Array = _attention(call, *operands)  # pyright: ignore
    return out[:, :length, :, :head_dim]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call: Call, q: Array, k: Array, v: Array, tables: rotary.Tables | None) -> Array:
    return _driver(call).forward(call, q, k, v, tables)[0]


def _forward(call: Call, q: Array, k: Array, v: Array, tables: rotary.Tables | None):
    out, log_sum = _driver(call).forward(call, q, k, v, tables)
    return out, (q, k, v, tables, out, log_sum)


def _backward(call: Call, kept, dout: Array):
    q, k, v, tables, out, log_sum = kept
    # (batch, heads, length): the part of the softmax's derivative that is one number per row.
    delta = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    return *_driver(call).backward(call, q, k, v, tables, dout, log_sum, delta), None


_attention.defvjp(_forward, _backward)


def _driver(call: Call):
    if call.interpret:
        from . import flash_interpreted

        return flash_interpreted
    from . import flash_gpu  # only where there is something to compile for: it needs a GPU build's modules

    return flash_gpu
