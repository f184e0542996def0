"""Whether the devices of a mesh can run the attention and the head that a config names, asked before they are used."""

import jax.numpy as jnp
from jax.sharding import Mesh

from dfm_jax.kernels import attention, target, vocab_head
from dfm_jax.models.transformer import TransformerConfig
from dfm_jax.runtime.errors import UsageError


def check(model: TransformerConfig, head: str, mesh: Mesh, *, losses: bool = True) -> list[str]:
    """UsageError where they cannot; else what 'auto' has chosen on a GPU that is not the usual, in words.

    Args:
        head: `config.model.head`. losses: whether losses are computed, whose head is split as the mesh is; draws are
            not.
    """
    here, dtype = target.of(mesh.devices.flat[0]), jnp.dtype(model.compute_dtype)
    needs = {"head_dim": model.head_dim, "dtype": dtype, "target": here}
    if model.attention != "auto" and (reason := attention.why_not(model.attention, **needs)) is not None:
        raise UsageError(f"config.model.attention = {model.attention}: {reason}")
    split = losses and mesh.shape["tensor"] > 1
    reason = None if head == "auto" else vocab_head.why_not(head, dtype=dtype, split=split, target=here)
    if reason is not None and (losses or head != "pallas"):  # draws have no kernel of their own
        raise UsageError(f"config.model.head = {head}: {reason}")
    refused = attention.why_not("cudnn", **needs) if model.attention == "auto" and here.is_gpu else None
    return [] if refused is None else [f"attention: xla, as cudnn is not possible: {refused}"]
