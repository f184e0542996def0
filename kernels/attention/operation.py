"""Full bidirectional attention, softmax(q k^T / sqrt(head_dim)) v: one definition, several implementations."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from .. import target as targets
from . import cudnn, flash, xla
from . import rotary as rotary_embedding
from .tiles import Blocks

IMPLEMENTATIONS = ("xla", "cudnn", "pallas")


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    rotary: rotary_embedding.Tables | None = None,
    implementation: str | None = None,
    blocks: Blocks | None = None,
    mesh: Mesh | None = None,
    batch_axes: tuple[str, ...] = (),
    head_axis: str | None = None,
) -> Array:
    """softmax over the keys of q k^T / sqrt(head_dim), times v. No mask: every position sees every other.

    Args:
        q, k, v: (batch, length, heads, head_dim), one floating dtype. Statistics are float32.
        rotary: cosines and sines, (length, head_dim / 2) float32 each and constants: q and k are rotated by them in
            float32 and rounded to the dtype of v. q and k may then be float32 with a narrower v, so that they are
            rounded only once. 'pallas' rotates tiles as it loads them if q has the dtype of v; otherwise q and k are
            rotated before the call.
        implementation: 'xla' | 'cudnn' | 'pallas' (our flash attention), as `why_not` allows. None chooses 'cudnn'
            where it can run on what the program is traced for (`kernels.target`), else 'xla'.
        blocks: tile sizes of 'pallas'.
        mesh, batch_axes, head_axis: how batch and heads are split over devices. Only 'pallas' uses them, because the
            compiler cannot split a kernel. It splits the other implementations itself.

    Returns:
        (batch, length, heads, head_dim) in the dtype of v.

    Raises:
        ValueError: shapes or dtypes that differ, an unknown implementation, or one that cannot take this call.
    """
    if not q.ndim == k.ndim == v.ndim == 4 or not q.shape == k.shape == v.shape:
        raise ValueError(
            f"q, k, v = shapes {q.shape}, {k.shape}, {v.shape}: expected one shape (batch, length, heads, head_dim)"
        )
    wide = rotary is not None and q.dtype == k.dtype == jnp.float32
    if not (q.dtype == k.dtype == v.dtype or wide) or not jnp.issubdtype(v.dtype, jnp.floating):
        raise ValueError(f"q, k, v = dtypes {q.dtype}, {k.dtype}, {v.dtype}: expected one floating dtype")
    if rotary is not None:
        rotary_embedding.check(rotary, q.shape[1], q.shape[3])
        rotary = jax.lax.stop_gradient(rotary)
    target = targets.current()
    if implementation is None:
        reason = why_not("cudnn", head_dim=v.shape[-1], dtype=v.dtype, target=target)
        implementation = "cudnn" if reason is None else "xla"
        _log_choice(implementation, reason, str(target), str(v.dtype), v.shape[-1])
    elif (reason := why_not(implementation, head_dim=v.shape[-1], dtype=v.dtype, target=target)) is not None:
        raise ValueError(f"implementation = {implementation!r}: {reason}")
    if rotary is not None and (implementation != "pallas" or q.dtype != v.dtype):
        q, k = (rotary_embedding.rotate(x, rotary).astype(v.dtype) for x in (q, k))
        rotary = None
    if implementation == "cudnn":
        return cudnn.attention(q, k, v)
    if implementation == "xla":
        return xla.attention(q, k, v)
    run = functools.partial(flash.flash_attention, blocks=blocks, interpret=not target.is_gpu)
    if mesh is None or mesh.size == 1:
        return run(q, k, v, rotary)
    spec = P(batch_axes or None, None, head_axis)
    # A kernel's results do not carry the mesh axes along which they vary, so there is nothing to check.
    split = jax.shard_map(run, mesh=mesh, in_specs=(spec, spec, spec, P()), out_specs=spec, check_vma=False)
    return split(q, k, v, rotary)


def why_not(
    implementation: str, *, head_dim: int, dtype: Any = jnp.bfloat16, target: targets.Target | None = None
) -> str | None:
    """Why `implementation` cannot run with heads of this size and dtype on `target` (default: the current one).

    Returns:
        None if it can; otherwise what is expected, as the end of an error `implementation = ...: `. 'cudnn' needs an
        NVIDIA GPU of compute capability 8.0 or more, bfloat16 or float16, head_dim a multiple of 8 up to 128 (on 9.0
        256), and an installed cuDNN. 'pallas' needs head_dim 32 to 128, and on a GPU compute capability 9.0 and
        bfloat16 or float16; elsewhere it is interpreted. 'xla' runs anywhere.
    """
    if implementation not in IMPLEMENTATIONS:
        return f"expected {', '.join(IMPLEMENTATIONS)}"
    if implementation == "xla":
        return None
    limits = cudnn.why_not if implementation == "cudnn" else flash.why_not
    return limits(head_dim, dtype, targets.current() if target is None else target)


@functools.cache
def _log_choice(implementation: str, reason: str | None, target: str, dtype: str, head_dim: int) -> None:
    log = logging.getLogger(__name__)
    log.info("attention: %s (%s, %s, head_dim %d)", implementation, target, dtype, head_dim)
    if reason is not None:
        log.debug("attention: not cudnn: %s", reason)
