"""The tensors of SEDD, MDLM, UDLM and Duo <-> those of the reference. Nothing is computed: every bit stays.

The networks are one. The others keep queries, keys and values in one matrix, rows in this order, and have other names
for two modules. The mask may stand inside their vocabulary; here it is the last state.
"""

import re
from collections.abc import Mapping

import numpy as np

from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.models.layers import TIME_FEATURES
from dfm_jax.models.transformer import TransformerConfig

_QKV = "attn_qkv.weight"
_PARTS = ("qw.weight", "kw.weight", "vw.weight")
_EMBEDDING = ("vocab_embed.embedding", "vocab_embed.weight")  # there, in the reference
_TIME = ("sigma_map.", "time_embedding.")


def shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The names there, without a prefix, in the order of the network's parameters, each with its shape."""
    s, h, c, m = config.vocab_size, config.hidden_size, config.cond_dim, config.mlp_ratio * config.hidden_size
    found: dict[str, tuple[int, ...]] = {
        "vocab_embed.embedding": (s, h),
        "sigma_map.mlp.0.weight": (c, TIME_FEATURES),
        "sigma_map.mlp.0.bias": (c,),
        "sigma_map.mlp.2.weight": (c, c),
        "sigma_map.mlp.2.bias": (c,),
        convert.INV_FREQ: (config.head_dim // 2,),
    }
    for i in range(config.n_blocks):
        found |= {
            f"blocks.{i}.norm1.weight": (h,),
            f"blocks.{i}.{_QKV}": (3 * h, h),
            f"blocks.{i}.attn_out.weight": (h, h),
            f"blocks.{i}.norm2.weight": (h,),
            f"blocks.{i}.mlp.0.weight": (m, h),
            f"blocks.{i}.mlp.0.bias": (m,),
            f"blocks.{i}.mlp.2.weight": (h, m),
            f"blocks.{i}.mlp.2.bias": (h,),
            f"blocks.{i}.adaLN_modulation.weight": (6 * h, c),
            f"blocks.{i}.adaLN_modulation.bias": (6 * h,),
        }
    return found | {
        "output_layer.norm_final.weight": (h,),
        "output_layer.linear.weight": (s, h),
        "output_layer.linear.bias": (s,),
        "output_layer.adaLN_modulation.weight": (2 * h, c),
        "output_layer.adaLN_modulation.bias": (2 * h,),
    }


def sizes(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, int]:
    """The sizes that the tensors imply, as fields of `TransformerConfig`.

    Raises:
        ValueError: a tensor that is needed is missing or has another number of axes.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        name = prefix + name
        if name not in tensors:
            raise ValueError(f"{name} is missing")
        if tensors[name].ndim != ndim or not tensors[name].size:
            raise ValueError(f"{name} = {list(tensors[name].shape)}: expected {ndim} axes")
        return tensors[name].shape

    states, hidden = shape("vocab_embed.embedding", 2)
    blocks = {match[1] for name in tensors if (match := re.match(rf"{re.escape(prefix)}blocks\.(\d+)\.", name))}
    n_blocks = 0
    while str(n_blocks) in blocks:
        n_blocks += 1
    return {
        "vocab_size": states,
        "hidden_size": hidden,
        "cond_dim": shape("sigma_map.mlp.0.weight", 2)[0],
        "n_blocks": n_blocks,
        "n_heads": max(1, hidden // (2 * shape(convert.INV_FREQ, 1)[0])),
        "mlp_ratio": max(1, shape("blocks.0.mlp.0.weight", 2)[0] // hidden),
    }


def check(tensors: Mapping[str, np.ndarray], config: TransformerConfig, prefix: str) -> None:
    """Raises ValueError naming the first tensor that is missing, unknown, or of another shape or dtype."""
    expected = {prefix + name: shape for name, shape in shapes(config).items()}
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ValueError(f"{missing[0]} is missing ({len(missing)} tensors are)")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise ValueError(f"{unknown[0]} is unknown ({len(unknown)} tensors are)")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype.name not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"{name} = {tensor.dtype}{list(tensor.shape)}: expected {list(shape)} in float32, bfloat16 or float16"
            )
    buffer = tensors[prefix + convert.INV_FREQ]
    frequencies = convert.inverse_frequencies(config).astype(buffer.dtype).astype(np.float32)
    if not np.allclose(buffer.astype(np.float32), frequencies, rtol=1e-5, atol=0):
        raise ValueError(f"{prefix}{convert.INV_FREQ}: expected 10000^(-2i/head_dim), i = 0 .. {len(buffer) - 1}")


def to_reference(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Checked tensors under the reference's names, float32, without the buffer."""
    found: dict[str, np.ndarray] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix(prefix).replace(*_EMBEDDING).replace(*_TIME)
        tensor = np.asarray(tensor, np.float32)
        if name.endswith(_QKV):
            parts = np.split(tensor, 3)
            found |= {name.replace(_QKV, part): rows for part, rows in zip(_PARTS, parts, strict=True)}
        elif name != convert.INV_FREQ:
            found[name] = tensor
    return found


def from_reference(tensors: Mapping[str, np.ndarray], config: TransformerConfig, prefix: str) -> dict[str, np.ndarray]:
    """The inverse of `to_reference`, the buffer included, in the order of the network's parameters."""
    found = {}
    for name in shapes(config):
        if name == convert.INV_FREQ:
            tensor = convert.inverse_frequencies(config)
        elif name.endswith(_QKV):
            tensor = np.concatenate([tensors[name.replace(_QKV, part)] for part in _PARTS])
        else:
            tensor = tensors[name.replace(*_EMBEDDING).replace(*_TIME)]
        found[prefix + name] = tensor
    return found


def mask_last(tensors: Mapping[str, np.ndarray], mask_id: int) -> dict[str, np.ndarray]:
    """The reference's tensors with row `mask_id` of the vocabulary after all others."""
    return {
        name: np.concatenate([np.delete(tensor, mask_id, 0), tensor[mask_id : mask_id + 1]])
        if name in convert.VOCABULARY
        else tensor
        for name, tensor in tensors.items()
    }


def mask_back(tensors: Mapping[str, np.ndarray], mask_id: int) -> dict[str, np.ndarray]:
    """The inverse of `mask_last`."""
    return {
        name: np.insert(tensor[:-1], mask_id, tensor[-1], axis=0) if name in convert.VOCABULARY else tensor
        for name, tensor in tensors.items()
    }
