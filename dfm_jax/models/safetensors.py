"""The safetensors file format, read and written with numpy alone.

A file is an 8-byte little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}` and the
raw tensors, row-major and little-endian, at those offsets from the end of the header.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from dfm_jax import files

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads every tensor of a file as a read-only memory map: pages are loaded when they are used.

    Args:
        path: the file.

    Returns:
        Arrays by name, in the file's order; bfloat16 as `ml_dtypes.bfloat16`.

    Raises:
        ValueError: the file is truncated, its header is not one, or a tensor lies outside the file.
    """
    path = pathlib.Path(path)
    header, start = _header(path)
    size = path.stat().st_size - start
    body = np.memmap(path, np.uint8, "r", start, (size,)) if size > 0 else np.zeros(0, np.uint8)
    return {name: _tensor(path, name, entry, body) for name, entry in header.items() if name != "__metadata__"}


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The strings that a file's header keeps beside its tensors. Raises ValueError where there is no such header."""
    return dict(_header(pathlib.Path(path))[0].get("__metadata__", {}))


def _header(path: pathlib.Path) -> tuple[dict, int]:
    """The header and where the tensors begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > min(size - 8, _MAX_HEADER):
            raise ValueError(f"{path}: not a safetensors file (header of {header_size} bytes in {size})")
        try:
            header = json.loads(file.read(header_size))
        except ValueError as error:
            raise ValueError(f"{path}: not a safetensors file (its header is not JSON)") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: not a safetensors file (its header is not an object)")
    return header, 8 + header_size


def _tensor(path: pathlib.Path, name: str, entry: dict, body: np.ndarray) -> np.ndarray:
    if entry.get("dtype") not in _DTYPES:
        raise ValueError(f"{path}: {name}: dtype={entry.get('dtype')}: accepted {', '.join(_DTYPES)}")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= body.size or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path}: {name}: bytes {begin}..{end} do not hold {shape} of {entry['dtype']}")
    # ndarray, not memmap: downstream code should not carry the subclass around.
    return np.asarray(body[begin:end]).view(dtype).reshape(shape)


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `tensors` so that the file appears whole or not at all.

    Args:
        path: the file; its folder exists.
        tensors: arrays by name, of the dtypes above.
        metadata: strings kept in the header (`transformers` wants `format`).

    Raises:
        ValueError: a dtype that the format does not have.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    arrays, offset = [], 0
    for name, value in tensors.items():
        array = np.asarray(value)
        dtype = array.dtype.newbyteorder("<") if array.dtype.isnative else array.dtype
        if dtype not in _NAMES:
            raise ValueError(f"{name}: dtype={array.dtype}: accepted {', '.join(_DTYPES)}")
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        arrays.append(array.astype(dtype, order="C", copy=False))
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8, as the format asks
    with files.replacing(path, durable=True) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            file.write(array.tobytes())
