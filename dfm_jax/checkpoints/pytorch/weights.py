"""Weights alone, as safetensors under the reference's names, in and out."""

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

# What a config says about the model itself; the rest is how a run happened to use it.
_OF_THE_MODEL = ("length", "dropout", "time_scale", "time_conditioning", "qk_norm", "tie_embeddings")


def write_weights(
    path: str | os.PathLike,
    model: Transformer,
    *,
    config: TransformerConfig,
    step: int,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Writes the weights alone as safetensors, under the reference's names; any model, whatever its options.

    The header's metadata has `config` (JSON of `TransformerConfig`), `step` and, if given, `network`: what the
    network's numbers mean, {"group.field": value} of the run's config, as JSON. A model with qk_norm has two
    tensors more per block, `query_norm.weight` and `key_norm.weight`; one with tied embeddings lacks
    `output_layer.linear.weight`.
    """
    metadata = {"format": "pt", "config": json.dumps(dataclasses.asdict(config)), "step": str(step)}
    if network:
        metadata["network"] = json.dumps(dict(network))
    write_safetensors(path, with_buffer(convert.to_tensors(model, config), config), metadata)


def read_weights(path: str | os.PathLike, options: Mapping[str, Any] | None = None) -> ImportedCheckpoint:
    """Reads `write_weights`'s file, or any safetensors file of the reference's tensors.

    Args:
        path: the file.
        options: fields of `TransformerConfig`. The architecture that the file tells must agree with them; length and
            dropout are theirs if given, else the file's.

    Returns:
        The weights with zero moments and count; the step is the file's, or 0 if it does not say.

    Raises:
        ValueError: one line that names the file and the tensor or field at fault.
        OSError: the file cannot be read.
    """
    metadata = read_metadata(path)
    tensors = read_safetensors(path)
    try:
        return _weights(dict(tensors), metadata, dict(options or {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _weights(tensors: dict[str, np.ndarray], metadata: dict[str, str], options: dict[str, Any]) -> ImportedCheckpoint:
    tensors = state_dict(tensors)
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


def _object(metadata: dict[str, str], name: str) -> dict[str, Any]:
    """The JSON object in the metadata under `name`, {} where there is none."""
    try:
        value = json.loads(metadata.get(name, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata {name}: expected JSON ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise ValueError(f"metadata {name} = {value}: expected an object")
    return value
