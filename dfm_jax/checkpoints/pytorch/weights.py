"""Reads and writes weights alone, as safetensors under the reference's names."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.checkpoints.pytorch.training_file import (
    ImportedCheckpoint,
    agreed_config,
    check_frequencies,
    state_dict,
    with_buffer,
)
from dfm_jax.checkpoints.safetensors_file import read_metadata, read_safetensors, write_safetensors
from dfm_jax.models.transformer import Transformer, TransformerConfig

# The fields of a config that belong to the model. The others only say how a run used it.
_OF_THE_MODEL = ("length", "dropout", "time_scale", "time_conditioning", "qk_norm", "tie_embeddings")


def write_weights(
    path: str | os.PathLike,
    model: Transformer,
    *,
    config: TransformerConfig,
    step: int,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Writes the weights alone as safetensors, under the reference's names, for a model with any options.

    The metadata in the header has `config` (JSON of `TransformerConfig`), `step`, and `network` if given: JSON of
    {"group.field": value} of the run's config, what the network's output means. A model with qk_norm has two more
    tensors per block, `query_norm.weight` and `key_norm.weight`. A model with tied embeddings has no
    `output_layer.linear.weight`.
    """
    metadata = {"format": "pt", "config": json.dumps(dataclasses.asdict(config)), "step": str(step)}
    if network:
        metadata["network"] = json.dumps(dict(network))
    write_safetensors(path, with_buffer(convert.to_tensors(model, config), config), metadata)


def read_weights(path: str | os.PathLike, options: Mapping[str, Any] | None = None) -> ImportedCheckpoint:
    """Reads a file of `write_weights`, or any safetensors file of the reference's tensors.

    Args:
        path: the file.
        options: fields of `TransformerConfig`. They must agree with the architecture in the file. Their length and
            dropout replace the file's.

    Returns:
        The weights, with zero moments and count. The step is the file's, or 0 if it has none.

    Raises:
        ValueError: one line with the file and the wrong tensor or field.
        OSError: the file cannot be read.
    """
    metadata = read_metadata(path)
    tensors = read_safetensors(path)
    try:
        return weights_of(tensors, metadata, options or {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def weights_of(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], options: Mapping[str, Any]
) -> ImportedCheckpoint:
    """`read_weights` of a file's tensors and the strings in its header. Raises ValueError alike, without the file."""
    tensors, options = state_dict(dict(tensors)), dict(options)
    told = convert.infer_config(tensors)
    saved, network = (_object(metadata, name) for name in ("config", "network"))
    step = metadata.get("step", "0")
    if not step.isdecimal():
        raise ValueError(f"metadata step = {step}: expected a number of updates")
    kept = {name: saved[name] for name in _OF_THE_MODEL if name in saved}
    told |= {name: value for name, value in kept.items() if name not in ("length", "dropout")}
    config = agreed_config(told, kept | options)
    check_frequencies(tensors.pop(convert.INV_FREQ), config)
    model = convert.from_tensors(tensors, config)
    zeros = jax.tree.map(np.zeros_like, model)
    return ImportedCheckpoint(config, model, zeros, zeros, count=0, step=int(step), network=network)


def _object(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """The JSON object in the metadata under `name`; {} if there is none."""
    try:
        value = json.loads(metadata.get(name, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata {name}: expected JSON ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise ValueError(f"metadata {name} = {value}: expected an object")
    return value
