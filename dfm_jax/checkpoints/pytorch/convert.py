"""Names and layouts: the PyTorch reference's tensors <-> the arrays of a `Transformer`.

The weight of a Linear is (out, in) there and (in, *out) here. Blocks are numbered there and stacked here. Queries, keys
and values are three weights there and one here. Vocabulary rows are padded here. Nothing is computed, so both
directions keep every bit. The functions serve weights, gradients and moments: anything shaped like the model.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from dfm_jax.models.layers import rotary_frequencies
from dfm_jax.models.transformer import Transformer, TransformerConfig

INV_FREQ = "rotary_emb.inv_freq"
VOCABULARY = ("vocab_embed.weight", "output_layer.linear.weight", "output_layer.linear.bias")

# Our path -> its tensors there, in the order of the reference's parameters (its optimizer uses that order).
_OUTER = {
    "embedding.table": ("vocab_embed.weight",),
    "time_embedding.hidden.kernel": ("time_embedding.mlp.0.weight",),
    "time_embedding.hidden.bias": ("time_embedding.mlp.0.bias",),
    "time_embedding.out.kernel": ("time_embedding.mlp.2.weight",),
    "time_embedding.out.bias": ("time_embedding.mlp.2.bias",),
}
_BLOCK = {
    "blocks.attention_norm.scale": ("norm1.weight",),
    "blocks.qkv.kernel": ("qw.weight", "kw.weight", "vw.weight"),
    # The reference has no such tensors. These names are ours, for models with qk_norm in a safetensors file.
    "blocks.query_norm.scale": ("query_norm.weight",),
    "blocks.key_norm.scale": ("key_norm.weight",),
    "blocks.attention_out.kernel": ("attn_out.weight",),
    "blocks.mlp_norm.scale": ("norm2.weight",),
    "blocks.mlp_up.kernel": ("mlp.0.weight",),
    "blocks.mlp_up.bias": ("mlp.0.bias",),
    "blocks.mlp_down.kernel": ("mlp.2.weight",),
    "blocks.mlp_down.bias": ("mlp.2.bias",),
    "blocks.modulation.linear.kernel": ("adaLN_modulation.weight",),
    "blocks.modulation.linear.bias": ("adaLN_modulation.bias",),
}
_FINAL = {
    "final_norm.scale": ("output_layer.norm_final.weight",),
    "head.kernel": ("output_layer.linear.weight",),
    "head.bias": ("output_layer.linear.bias",),
    "final_modulation.linear.kernel": ("output_layer.adaLN_modulation.weight",),
    "final_modulation.linear.bias": ("output_layer.adaLN_modulation.bias",),
}


class _Place(NamedTuple):
    """The place of one of the reference's tensors in our arrays."""

    name: str  # there
    path: str  # here
    index: tuple  # of the part of our array at `path`


def parameter_names(config: TransformerConfig) -> list[str]:
    """The reference's names of the trained tensors, in its order, without the buffer `rotary_emb.inv_freq`."""
    return [place.name for place in _places(config)]


def to_tensors(model: Transformer, config: TransformerConfig) -> dict[str, np.ndarray]:
    """Converts anything shaped like the model to the reference's tensors, float32 numpy arrays in its order."""
    arrays = _by_path(model)
    tensors = {}
    for name, path, index in _places(config):
        array = np.asarray(arrays[path])[index]
        if path.endswith(".kernel"):
            array = array.reshape(array.shape[0], -1).T
        elif path.endswith(".bias"):
            array = array.reshape(-1)
        if name in VOCABULARY:
            array = array[: config.vocab_size]
        tensors[name] = np.ascontiguousarray(array, np.float32)
    return tensors


def from_tensors(tensors: Mapping[str, np.ndarray], config: TransformerConfig) -> Transformer:
    """Converts the reference's tensors to a `Transformer` (or something of its shape) with numpy leaves.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape or dtype. The error names it.
    """
    abstract = abstract_model(config)
    arrays = {path: np.zeros(leaf.shape, np.float32) for path, leaf in _by_path(abstract).items()}
    places = list(_places(config))
    _check_names(tensors, {place.name for place in places})
    for name, path, index in places:
        target = arrays[path][index]
        shape = _reference_shape(name, path, target.shape, config)
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise ValueError(f"{name} = {tensor.dtype}{list(tensor.shape)}: expected float32{list(shape)}")
        if path.endswith(".kernel"):
            tensor = tensor.T
        if name in VOCABULARY:
            target[tuple(slice(0, size) for size in tensor.shape)] = tensor
        else:
            target[...] = tensor.reshape(target.shape)
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[path] for path in _by_path(abstract)])


@functools.lru_cache(maxsize=8)
def abstract_model(config: TransformerConfig) -> Transformer:
    """The model's tree with shapes in place of arrays."""
    return jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))


def inverse_frequencies(config: TransformerConfig) -> np.ndarray:
    """The buffer `rotary_emb.inv_freq`, (head_dim / 2,) float32."""
    return np.asarray(rotary_frequencies(config.head_dim))


def infer_config(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The architecture that the reference's tensors imply, as fields of `TransformerConfig`.

    The number of heads comes from the length of `rotary_emb.inv_freq`. The tensors do not show the sequence length and
    the dropout.

    Raises:
        ValueError: a tensor that is needed is missing, or has a shape that no such model has.
    """
    table = _shape(tensors, "vocab_embed.weight", 2)
    hidden = table[1]
    head_dim = 2 * _shape(tensors, INV_FREQ, 1)[0]
    if head_dim == 0 or hidden % head_dim:
        raise ValueError(
            f"{INV_FREQ} = [{head_dim // 2}]: expected a length n with hidden_size={hidden} a multiple of 2n"
        )
    mlp = _shape(tensors, "blocks.0.mlp.0.weight", 2)[0]
    if mlp % hidden:
        raise ValueError(f"blocks.0.mlp.0.weight = [{mlp}, ...]: expected a multiple of hidden_size={hidden}")
    # Up to the first gap. A block number after a gap is an unknown tensor and does not raise the number of blocks.
    blocks = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    n_blocks = next(i for i in itertools.count() if str(i) not in blocks)
    return {
        "vocab_size": table[0],
        "hidden_size": hidden,
        "cond_dim": _shape(tensors, "time_embedding.mlp.0.weight", 2)[0],
        "n_blocks": n_blocks,
        "n_heads": hidden // head_dim,
        "mlp_ratio": mlp // hidden,
    }


def _shape(tensors: Mapping[str, np.ndarray], name: str, ndim: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"{name} is missing: expected a checkpoint of the reference's text model")
    if tensors[name].ndim != ndim:
        raise ValueError(f"{name} = {list(tensors[name].shape)}: expected {ndim} axes")
    return tensors[name].shape


def _check_names(tensors: Mapping[str, np.ndarray], expected: set[str]) -> None:
    missing, unknown = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    if missing:
        raise ValueError(f"{missing[0]} is missing ({len(missing)} tensors are)")
    if unknown:
        raise ValueError(f"{unknown[0]} is unknown ({len(unknown)} tensors are)")


def _reference_shape(name: str, path: str, ours: tuple[int, ...], config: TransformerConfig) -> tuple[int, ...]:
    if name == "output_layer.linear.weight":
        return (config.vocab_size, ours[0])
    if name in VOCABULARY:
        return (config.vocab_size, *ours[1:])
    if path.endswith(".kernel"):
        return (math.prod(ours[1:]), ours[0])
    return (math.prod(ours),)


def _places(config: TransformerConfig) -> Iterator[_Place]:
    here = set(_by_path(abstract_model(config)))
    for path, (name,) in _OUTER.items():
        yield _Place(name, path, ())
    for i in range(config.n_blocks):
        for path, names in _BLOCK.items():
            for j, name in enumerate(names):
                if path in here:
                    yield _Place(f"blocks.{i}.{name}", path, (i, slice(None), j) if len(names) > 1 else (i,))
    for path, (name,) in _FINAL.items():
        if path in here:
            yield _Place(name, path, ())


def _by_path(model: Transformer) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(model)
    names = (jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value") for path, _ in leaves)
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))
