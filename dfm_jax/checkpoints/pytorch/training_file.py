"""The reference's training checkpoint in and out: weights, step and AdamW's moments."""

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
    """A training state on the host: `model`, `mu`, `nu` have numpy leaves, float32, ready for `jax.device_put`.

    `step` updates were applied. `count` is AdamW's own number of updates, which may differ; `mu` and `nu` are
    its first and second moments, shaped like the model, zero where the file has none. `network` is what the file says
    about the meaning of the network's numbers, {"group.field": value} of a config; empty where it says nothing.
    """

    config: TransformerConfig
    model: Transformer
    mu: Transformer
    nu: Transformer
    count: int
    step: int
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike, options: Mapping[str, Any] | None = None) -> ImportedCheckpoint:
    """Reads the reference's `checkpoint.pth` without PyTorch and without executing anything in it.

    The architecture is read off the tensors. Names may carry the prefixes of torch.compile and DDP.

    Args:
        path: the file.
        options: fields of `TransformerConfig`. Those that the tensors tell must agree with them; the others (length,
            dropout, compute_dtype, ...) are taken over.

    Raises:
        ValueError: one line that names the file and the tensor, key or field at fault.
        OSError: the file cannot be read.
    """
    content = read_archive(path)
    try:
        return _training_state(content, dict(options or {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def infer_source(vocab_size: int) -> str:
    """The source distribution of a GPT-2 vocabulary's model, from its number of states: 'uniform' or 'mask'.

    Raises:
        ValueError: another number; the file does not say what it is, so the config must.
    """
    if vocab_size not in (50257, 50258):
        raise ValueError(
            f"vocab_embed.weight has {vocab_size} rows: accepted 50257 (uniform) or 50258 (mask), "
            "else flow.source_distribution from --config"
        )
    return "uniform" if vocab_size == 50257 else "mask"


def check_exportable(config: TransformerConfig) -> None:
    """Raises ValueError if the reference's model has no counterpart of one of the config's options."""
    for name, value in _OURS_ONLY.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"model.{name}={getattr(config, name)}: accepted {value} in the reference's format; "
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
    """Writes the reference's `checkpoint.pth` without PyTorch; it appears whole or not at all.

    Args:
        path: the file; its folder exists.
        model: the weights.
        config: the model's.
        step: updates applied.
        mu, nu: AdamW's moments, shaped like the model.
        count: AdamW's number of updates.
        hyperparameters: lr (of the last update), beta1, beta2, eps, weight_decay.

    Raises:
        ValueError: the model has an option that the reference's lacks.
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
        # Its data order is not ours, so no position of ours means anything there: it starts an epoch.
        "train_sampler": {"yielded": 0},
        "test_sampler": {"yielded": 0},
    }
    write_archive(path, content)


def with_buffer(tensors: dict[str, np.ndarray], config: TransformerConfig) -> OrderedDict[str, np.ndarray]:
    """`tensors` with the buffer of rotary frequencies at its place in the reference's order."""
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
            raise ValueError(f"key {key} is missing: accepted {', '.join(_KEYS)}")
    for key in content:
        if key not in _KEYS:
            raise ValueError(f"key {key} is unknown: accepted {', '.join(_KEYS)}")
    tensors = state_dict(content["model"])
    config = agreed_config(convert.infer_config(tensors) | _OURS_ONLY, options)
    check_frequencies(tensors.pop(convert.INV_FREQ), config)
    model = convert.from_tensors(tensors, config)
    count, first, second = _moments(content["optimizer"], tensors, config)
    step = content["step"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"step={step}: accepted a number of updates")
    return ImportedCheckpoint(
        config,
        model,
        convert.from_tensors(first, config),
        convert.from_tensors(second, config),
        count,
        step,
    )


def state_dict(value: Any) -> dict[str, np.ndarray]:
    tensors = {}
    for name, tensor in _dict(value, "model").items():
        while isinstance(name, str) and name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        if not isinstance(tensor, np.ndarray) or not isinstance(name, str):
            raise ValueError(f"model: {name} is a {type(tensor).__name__}: accepted tensors")
        if name in tensors:
            raise ValueError(f"model: {name} appears twice, with and without a prefix")
        tensors[name] = tensor
    return tensors


def agreed_config(told: Mapping[str, Any], options: Mapping[str, Any]) -> TransformerConfig:
    """The config of `told` (what the file says) and `options` (what the user says), where they do not disagree."""
    for name, value in told.items():
        if options.get(name, value) != value:
            raise ValueError(f"{name}={options[name]} in the config: accepted {value}, as the file says")
    return TransformerConfig(**{**options, **told})


def check_frequencies(buffer: np.ndarray, config: TransformerConfig) -> None:
    expected = convert.inverse_frequencies(config)
    if buffer.dtype != np.float32 or not np.allclose(buffer, expected, rtol=1e-5, atol=0):
        raise ValueError(f"{convert.INV_FREQ}={buffer.tolist()}: accepted 10000^(-2i/head_dim) in float32")


def _moments(
    optimizer: Any, tensors: dict[str, np.ndarray], config: TransformerConfig
) -> tuple[int, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """AdamW's count and moments by name; its state is keyed by the parameter's place in the model."""
    optimizer = _dict(optimizer, "optimizer")
    groups, states = optimizer.get("param_groups"), _dict(optimizer.get("state"), "optimizer.state")
    names = convert.parameter_names(config)
    if not isinstance(groups, list) or len(groups) != 1:
        raise ValueError("optimizer.param_groups: accepted one group, as the reference's")
    if _dict(groups[0], "optimizer.param_groups").get("params") != list(range(len(names))):
        raise ValueError(f"optimizer.param_groups: accepted the {len(names)} parameters in the model's order")
    if not states:  # no update yet
        zeros = {name: np.zeros_like(tensors[name]) for name in names}
        return 0, zeros, zeros
    if set(states) != set(range(len(names))):
        raise ValueError(f"optimizer.state: accepted a state for each of the {len(names)} parameters")
    counts, moments = set(), ({}, {})
    for i, name in enumerate(names):
        state = _dict(states[i], f"optimizer.state of {name}")
        if set(state) != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"optimizer.state of {name}: {sorted(state)}: accepted step, exp_avg, exp_avg_sq")
        counts.add(float(np.asarray(state["step"], np.float64)))
        for kind, target in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
            if not isinstance(state[kind], np.ndarray):
                raise ValueError(f"optimizer.state of {name}: {kind}: accepted a tensor")
            target[name] = state[kind]
    if len(counts) != 1 or not min(counts).is_integer():
        raise ValueError(f"optimizer.state: steps {sorted(counts)}: accepted one number for all parameters")
    return int(counts.pop()), *moments


def _dict(value: Any, name: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is a {type(value).__name__}: accepted a dict")
    return value
