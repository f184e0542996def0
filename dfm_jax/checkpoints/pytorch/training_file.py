"""Reads and writes the reference's training checkpoint: weights, step and AdamW's moments."""

import dataclasses
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.checkpoints.pytorch.archive import read_archive, write_archive
from dfm_jax.models.transformer import Transformer, TransformerConfig

_KEYS = ("optimizer", "model", "step", "train_sampler", "test_sampler")
_PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and of DistributedDataParallel
_OURS_ONLY = {"time_scale": 1.0, "time_conditioning": True, "qk_norm": False, "tie_embeddings": False}


@dataclasses.dataclass(frozen=True)
class ImportedCheckpoint:
    """A training state on the host. `model`, `mu` and `nu` have float32 numpy leaves, ready for `jax.device_put`.

    step: updates applied. count: AdamW's own number of updates, which may differ. mu, nu: its first and second moments,
    shaped like the model; zero if the file has none. network: {"group.field": value} of a config, what the file says
    about the meaning of the network's output; empty if it says nothing.
    """

    config: TransformerConfig
    model: Transformer
    mu: Transformer
    nu: Transformer
    count: int
    step: int
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike, options: Mapping[str, Any] | None = None) -> ImportedCheckpoint:
    """Reads the reference's `checkpoint.pth`, without PyTorch and without executing code in it.

    The architecture follows from the tensors. Names may have the prefixes of torch.compile and DDP.

    Args:
        path: the file.
        options: fields of `TransformerConfig`. Fields that the tensors imply must agree with them. The others (length,
            dropout, compute_dtype, ...) are used as given.

    Raises:
        ValueError: one line with the file and the wrong tensor, key or field.
        OSError: the file cannot be read.
    """
    content = read_archive(path)
    try:
        return _training_state(content, dict(options or {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def infer_source(vocab_size: int) -> str:
    """The source distribution of a model with GPT-2's vocabulary, from its number of states: 'uniform' or 'mask'.

    Raises:
        ValueError: another number. The config must then name the source, as the file does not.
    """
    if vocab_size not in (50257, 50258):
        raise ValueError(
            f"vocab_embed.weight has {vocab_size} rows: expected 50257 (uniform) or 50258 (mask), "
            "else flow.source_distribution from --config"
        )
    return "uniform" if vocab_size == 50257 else "mask"


def check_exportable(config: TransformerConfig) -> None:
    """Raises ValueError if the reference's model lacks an option that the config uses."""
    for name, value in _OURS_ONLY.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"model.{name} = {getattr(config, name)}: expected {value} in the reference's format; "
                "--format=safetensors takes every model"
            )


def write_checkpoint(
    path: str | os.PathLike,
    model: Transformer,
    *,
    config: TransformerConfig,
    step: int,
    mu: Transformer,
    nu: Transformer,
    count: int,
    hyperparameters: Mapping[str, float],
) -> None:
    """Writes the reference's `checkpoint.pth`, without PyTorch. The file appears whole or not at all.

    Args:
        path: the file; its folder exists.
        model: the weights.
        config: the model's.
        step: updates applied.
        mu, nu: AdamW's moments, shaped like the model.
        count: AdamW's number of updates.
        hyperparameters: lr (of the last update), beta1, beta2, eps, weight_decay.

    Raises:
        ValueError: the model uses an option that the reference's model lacks.
    """
    check_exportable(config)
    tensors = convert.to_tensors(model, config)
    first, second = convert.to_tensors(mu, config), convert.to_tensors(nu, config)
    moments = {
        i: {"step": np.array(count, np.float32), "exp_avg": first[name], "exp_avg_sq": second[name]}
        for i, name in enumerate(tensors)
    }
    group = {
        "lr": float(hyperparameters["lr"]),
        "betas": (float(hyperparameters["beta1"]), float(hyperparameters["beta2"])),
        "eps": float(hyperparameters["eps"]),
        "weight_decay": float(hyperparameters["weight_decay"]),
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "params": list(moments),
    }
    content = {
        "optimizer": {"state": moments, "param_groups": [group]},
        "model": with_buffer(tensors, config),
        "step": int(step),
        # The reference has another order of the data, so our position means nothing there. It starts an epoch.
        "train_sampler": {"yielded": 0},
        "test_sampler": {"yielded": 0},
    }
    write_archive(path, content)


def with_buffer(tensors: dict[str, np.ndarray], config: TransformerConfig) -> OrderedDict[str, np.ndarray]:
    """`tensors` with the buffer of rotary frequencies inserted at its place in the reference's order."""
    result = OrderedDict()
    for name, tensor in tensors.items():
        if name == "blocks.0.norm1.weight":
            result[convert.INV_FREQ] = convert.inverse_frequencies(config)
        result[name] = tensor
    return result


def _training_state(content: Any, options: dict[str, Any]) -> ImportedCheckpoint:
    content = _dict(content, "the file")
    for key in _KEYS[:3]:
        if key not in content:
            raise ValueError(f"key {key} is missing: expected {', '.join(_KEYS)}")
    for key in content:
        if key not in _KEYS:
            raise ValueError(f"key {key} is unknown: expected {', '.join(_KEYS)}")
    tensors = state_dict(content["model"])
    config = agreed_config(convert.infer_config(tensors) | _OURS_ONLY, options)
    check_frequencies(tensors.pop(convert.INV_FREQ), config)
    model = convert.from_tensors(tensors, config)
    count, first, second = _moments(content["optimizer"], tensors, config)
    step = content["step"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"step = {step}: expected a number of updates")
    return ImportedCheckpoint(
        config,
        model,
        convert.from_tensors(first, config),
        convert.from_tensors(second, config),
        count,
        step,
    )


def state_dict(value: Any) -> dict[str, np.ndarray]:
    """The tensors of a model's state dict by name, without the prefixes of torch.compile and DDP.

    Raises ValueError for values that are not tensors, and for a name that occurs twice.
    """
    tensors = {}
    for name, tensor in _dict(value, "model").items():
        while isinstance(name, str) and name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        if not isinstance(tensor, np.ndarray) or not isinstance(name, str):
            raise ValueError(f"model: {name} is a {type(tensor).__name__}: expected tensors")
        if name in tensors:
            raise ValueError(f"model: {name} appears twice, with and without a prefix")
        tensors[name] = tensor
    return tensors


def agreed_config(told: Mapping[str, Any], options: Mapping[str, Any]) -> TransformerConfig:
    """The config from `told` (by the file) and `options` (by the user). Raises ValueError where they disagree."""
    for name, value in told.items():
        if options.get(name, value) != value:
            raise ValueError(f"{name} = {options[name]} in the config: expected {value}, as the file says")
    return TransformerConfig(**{**options, **told})


def check_frequencies(buffer: np.ndarray, config: TransformerConfig) -> None:
    """Raises ValueError unless `buffer` (head_dim / 2,) float32 holds the rotary frequencies of our model."""
    expected = convert.inverse_frequencies(config)
    if buffer.dtype != np.float32 or not np.allclose(buffer, expected, rtol=1e-5, atol=0):
        raise ValueError(f"{convert.INV_FREQ} = {buffer.tolist()}: expected 10000^(-2i/head_dim) in float32")


def _moments(
    optimizer: Any, tensors: dict[str, np.ndarray], config: TransformerConfig
) -> tuple[int, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """AdamW's count and its moments by name. In the file the keys are the parameters' places in the model."""
    optimizer = _dict(optimizer, "optimizer")
    groups, states = optimizer.get("param_groups"), _dict(optimizer.get("state"), "optimizer.state")
    names = convert.parameter_names(config)
    if not isinstance(groups, list) or len(groups) != 1:
        raise ValueError("optimizer.param_groups: expected one group, as the reference's")
    if _dict(groups[0], "optimizer.param_groups").get("params") != list(range(len(names))):
        raise ValueError(f"optimizer.param_groups: expected the {len(names)} parameters in the model's order")
    if not states:  # no update yet
        zeros = {name: np.zeros_like(tensors[name]) for name in names}
        return 0, zeros, zeros
    if set(states) != set(range(len(names))):
        raise ValueError(f"optimizer.state: expected a state for each of the {len(names)} parameters")
    counts, moments = set(), ({}, {})
    for i, name in enumerate(names):
        state = _dict(states[i], f"optimizer.state of {name}")
        if set(state) != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"optimizer.state of {name}: {sorted(state)}: expected step, exp_avg, exp_avg_sq")
        counts.add(float(np.asarray(state["step"], np.float64)))
        for kind, target in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
            if not isinstance(state[kind], np.ndarray):
                raise ValueError(f"optimizer.state of {name}: {kind}: expected a tensor")
            target[name] = state[kind]
    if len(counts) != 1 or not min(counts).is_integer():
        raise ValueError(f"optimizer.state: steps {sorted(counts)}: expected one number for all parameters")
    return int(counts.pop()), *moments


def _dict(value: Any, name: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is a {type(value).__name__}: expected a dict")
    return value
