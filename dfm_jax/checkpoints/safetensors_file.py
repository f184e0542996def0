"""The safetensors format, by its own package, with errors of one line and atomic writes."""

import os
from collections.abc import Mapping

import ml_dtypes  # noqa: F401  before safetensors: it gives numpy the dtype bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dfm_jax.runtime import files


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads every tensor of a file, by name; bfloat16 becomes `ml_dtypes.bfloat16`.

    Raises:
        ValueError: the file is cut, is not of this format, or has a dtype that numpy lacks.
        OSError: the file cannot be read.
    """
    return _read(path)[0]


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Reads the strings in a file's header. Raises as `read_safetensors` does."""
    return _read(path, tensors=False)[1]


def _read(path: str | os.PathLike, *, tensors: bool = True) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(path, framework="np") as file:
            names = file.keys() if tensors else []
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `tensors` (of any strides) so that the file appears whole or not at all.

    Args:
        path: the file; its folder exists.
        tensors: arrays by name. The package chooses their order in the file.
        metadata: strings for the header (`transformers` needs `format`).

    Raises:
        ValueError: a dtype that the format does not have.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with files.replacing(path, durable=True) as file:
        try:
            save_file(arrays, file.name, dict(metadata) if metadata else None)
        except SafetensorError as error:
            raise ValueError(f"{path}: {error}") from error
        with open(file.name, "rb") as written:  # the package has replaced the file under this name
            os.fsync(written.fileno())
