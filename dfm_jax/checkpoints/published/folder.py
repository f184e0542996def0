"""What a published folder holds: config.json and the tensors, in one file, in several with an index, or in a pickle."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dfm_jax.checkpoints.published.layouts import OURS
from dfm_jax.checkpoints.pytorch.archive import read_archive
from dfm_jax.checkpoints.pytorch.convert import INV_FREQ
from dfm_jax.checkpoints.pytorch.training_file import state_dict
from dfm_jax.checkpoints.safetensors_file import read_metadata, read_safetensors
from dfm_jax.runtime import files

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Under which training checkpoints keep the network: Lightning's, SEDD's.
_STATES = ("state_dict", "model")
# Patterns of all that a repository is downloaded for.
WANTED = ("*.json", "*.safetensors", "pytorch_model*.bin", "*.txt", "*.npy", "README.md")


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The object in config.json. Raises ValueError where there is none, WorldError where it cannot be read."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a folder with {CONFIG} and {WEIGHTS[0]} or {WEIGHTS[2]}")
    return _object(path)


def of_ours(folder: pathlib.Path) -> dict[str, Any] | None:
    """config.json of a folder that `--format=hub` wrote; None for any other. Raises WorldError: it cannot be read."""
    if not (folder / CONFIG).is_file() or not any((folder / name).is_file() for name in WEIGHTS):
        return None
    content = files.read_json(folder / CONFIG)
    return content if isinstance(content, dict) and content.get("model_type") == OURS else None


def read_tensors(
    folder: pathlib.Path, file: pathlib.Path | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors by name, without the prefixes of torch.compile and DDP, and the strings beside them.

    file: the one that holds them; None is the first of `WEIGHTS` that is there.

    Raises:
        ValueError: there are no weights, or a file is not what its name says.
        OSError, WorldError: a file cannot be read.
    """
    path = file or next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder}: no weights in it; expected {', '.join(WEIGHTS)}")
    if path.suffix != ".json":
        return _read(path), read_metadata(path) if path.suffix == ".safetensors" else {}
    places = _object(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{path}: weight_map: expected tensors and the files that hold them")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(places.values())):
        if pathlib.PurePath(name).name != name:
            raise ValueError(f"{path}: weight_map names {name}: expected files of this folder")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: no such file, which {path.name} names")
        part = _read(folder / name)
        for tensor in part:
            if tensor in tensors:
                raise ValueError(f"{folder / name}: {tensor} is in another shard too")
        tensors |= part
    listed, there = set(state_dict({name: np.zeros(0) for name in places})), set(tensors)
    for name in sorted(listed ^ there):
        raise ValueError(f"{path}: {name}: expected a tensor that both the index and the shards have")
    return tensors, {}


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return state_dict(read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path))
    except ValueError as error:
        line = str(error)
        raise ValueError(line if line.startswith(str(path)) else f"{path}: {line}") from error


def _read_bin(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    """By our own reader, which runs no code; what it cannot read by torch, where that is installed."""
    try:
        content = read_archive(path)
    except ValueError as error:
        content = _by_torch(path, error)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}: expected tensors by name")
    inner = next((content[key] for key in _STATES if isinstance(content.get(key), dict)), None)
    return content if inner is None else _averaged(inner, content.get("ema"))


def _averaged(tensors: Mapping[str, np.ndarray], ema: Any) -> Mapping[str, np.ndarray]:
    """A training checkpoint's tensors, with their averages where it keeps some: a list of the parameters in order."""
    if not isinstance(ema, dict) or "shadow_params" not in ema:
        return tensors
    names = [name for name in tensors if not name.endswith(INV_FREQ)]
    averages = ema["shadow_params"]
    if not isinstance(averages, list) or [np.shape(a) for a in averages] != [np.shape(tensors[n]) for n in names]:
        raise ValueError(f"ema.shadow_params: expected the averages of the {len(names)} parameters, in their order")
    return {**tensors, **dict(zip(names, averages, strict=True))}


def _by_torch(path: pathlib.Path, reason: ValueError) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"{reason}; PyTorch might read it: pip install dfm_jax[torch]") from reason
    try:
        content = torch.load(os.fspath(path), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever pickle, zip and torch raise
        raise ValueError(f"{reason}; nor can PyTorch ({' '.join(str(error).split())[:200]})") from error

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return plain(content)


def _object(path: pathlib.Path) -> dict[str, Any]:
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected an object")
    return value
