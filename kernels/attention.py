"""Full bidirectional attention, softmax(q k^T / sqrt(head_dim)) v: one definition, several implementations."""

import functools
import logging

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from . import rotary as rotary_embedding
from .flash import HEAD_DIMS, Blocks, flash_attention

IMPLEMENTATIONS = ("xla", "cudnn", "pallas")
_CUDNN_MAX_HEAD_DIM = 128  # 256 on Hopper in the forward pass; 128 is what every GPU trains with


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
            float32 and rounded to the dtype of v. They may then be float32 beside a narrower v, to be rounded once.
            'pallas' rotates tiles of the dtype of v as it loads them; the rest is rotated before.
        implementation: 'xla' | 'cudnn' (NVIDIA GPUs; float16 or bfloat16) | 'pallas' (our flash attention: Hopper
            and later in float16 or bfloat16, interpreted elsewhere). None chooses 'cudnn' or 'xla' for the
            platform that the program is traced for (that of the mesh in `jax.set_mesh`, else the default backend).
        blocks: tile sizes of 'pallas'.
        mesh, batch_axes, head_axis: how batch and heads are split, which 'pallas' must be told, as the compiler
            cannot split a kernel. The others are partitioned by the compiler.

    Returns:
        (batch, length, heads, head_dim) in the dtype of v.

    Raises:
        ValueError: shapes or dtypes differ, an unknown implementation, or one whose limits exclude this call.
    """
    if not q.ndim == k.ndim == v.ndim == 4 or not q.shape == k.shape == v.shape:
        raise ValueError(
            f"q, k, v of shapes {q.shape}, {k.shape}, {v.shape}: accepted is one shape (batch, length, heads, head_dim)"
        )
    wide = rotary is not None and q.dtype == k.dtype == jnp.float32
    if not (q.dtype == k.dtype == v.dtype or wide) or not jnp.issubdtype(v.dtype, jnp.floating):
        raise ValueError(f"q, k, v of dtypes {q.dtype}, {k.dtype}, {v.dtype}: accepted is one floating dtype")
    if rotary is not None:
        rotary_embedding.check(rotary, q.shape[1], q.shape[3])
        rotary = jax.lax.stop_gradient(rotary)
    platform = target_platform()
    if implementation is None:
        implementation = "cudnn" if limit("cudnn", v, platform) is None else "xla"
        _log_choice(implementation, platform, str(v.dtype), v.shape[-1])
    elif implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r}: accepted {', '.join(IMPLEMENTATIONS)}")
    elif (reason := limit(implementation, v, platform)) is not None:
        raise ValueError(f"implementation={implementation!r}: {reason}")
    if rotary is not None and (implementation != "pallas" or q.dtype != v.dtype):
        q, k = (rotary_embedding.rotate(x, rotary).astype(v.dtype) for x in (q, k))
        rotary = None
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if implementation == "pallas":
        run = functools.partial(flash_attention, blocks=blocks, interpret=not is_gpu(platform))
        if mesh is None or mesh.size == 1:
            return run(q, k, v, rotary)
        spec = P(batch_axes or None, None, head_axis)
        # A kernel's results do not say along which axes they vary: nothing to check.
        split = jax.shard_map(run, mesh=mesh, in_specs=(spec, spec, spec, P()), out_specs=spec, check_vma=False)
        return split(q, k, v, rotary)
    return _xla(q, k, v)


def _xla(q: Array, k: Array, v: Array) -> Array:
    """The definition. (jax.nn's own XLA form does not differentiate bfloat16 under strict dtype promotion.)"""
    # Float32 operands are multiplied as float32, not as TF32.
    precision = None if q.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    acc = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k, precision=precision, preferred_element_type=acc)
    probs = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(q.dtype)
    return jnp.einsum("bhlm,bmhd->blhd", probs, v, precision=precision)


def limit(implementation: str, q: Array, platform: str) -> str | None:
    """Why `implementation` cannot take queries like q on `platform`, or None if it can."""
    head_dim, half = q.shape[-1], q.dtype in (jnp.bfloat16, jnp.float16)
    if implementation == "cudnn":
        if not is_gpu(platform):
            return f"platform {platform}, accepted an NVIDIA GPU"
        if not half:
            return f"dtype {q.dtype}, accepted bfloat16 or float16"
        if head_dim % 8 or head_dim > _CUDNN_MAX_HEAD_DIM:
            return f"head_dim {head_dim}, accepted multiples of 8 up to {_CUDNN_MAX_HEAD_DIM}"
    if implementation == "pallas":
        if not HEAD_DIMS[0] <= head_dim <= HEAD_DIMS[1]:
            return f"head_dim {head_dim}, accepted {HEAD_DIMS[0]} to {HEAD_DIMS[1]}"
        if is_gpu(platform) and not half:
            return f"dtype {q.dtype}, accepted bfloat16 or float16"
    return None


def is_gpu(platform: str) -> bool:
    return platform in ("cuda", "gpu")


def target_platform() -> str:
    """'cpu', 'gpu', 'cuda', ...: what the program being traced is for.

    A program compiled ahead of time is for the devices of the mesh in `jax.set_mesh`, not for the default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


@functools.cache
def _log_choice(implementation: str, platform: str, dtype: str, head_dim: int) -> None:
    logging.getLogger(__name__).info(
        "attention: %s (platform %s, %s, head_dim %d)", implementation, platform, dtype, head_dim
    )
