"""Reads and writes files of `torch.save`, a zip of one pickle and raw tensors, without PyTorch."""

import os
import pathlib
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from dfm_jax.checkpoints.pytorch import restricted_pickle
from dfm_jax.runtime import files

# What zipfile raises for a file that is not a zip, or is cut or overwritten. OSError: an offset outside the file.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, RuntimeError, OSError)
_ALIGNMENT = 64  # of tensors in the file, in bytes; PyTorch needs it to map them


def read_archive(path: str | os.PathLike) -> Any:
    """Reads what `torch.save` saved: dicts, lists, tuples and scalars, with read-only numpy arrays for tensors.

    Raises:
        ValueError: the file is damaged, has another format or holds other objects. No code in it is executed.
        OSError: the file cannot be read.
    """
    with pathlib.Path(path).open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _Reader(archive).read()
        except _DAMAGE as error:
            raise ValueError(f"{path}: not a whole file of torch.save's zip format ({error})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


class _Reader:
    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        self.storages: dict[str, np.ndarray] = {}
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip without one data.pkl: expected a file of torch.save")
        self.root = pickles[0].removesuffix("data.pkl")

    def read(self) -> Any:
        if self.root + "byteorder" in self.archive.namelist() and self._member("byteorder") != b"little":
            raise ValueError("byteorder = big: expected little")
        return restricted_pickle.loads(self._member("data.pkl"), self._storage)

    def _member(self, name: str) -> bytes:
        info = self.archive.getinfo(self.root + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{info.filename} is compressed: expected stored, as torch.save writes")
        return self.archive.read(info)

    def _storage(self, key: str, dtype: np.dtype, size: int) -> np.ndarray:
        if key not in self.storages:
            data = self._member(f"data/{key}")
            if len(data) != size * dtype.itemsize:
                raise ValueError(f"storage {key} of {len(data)} bytes: expected {size} of {dtype}")
            self.storages[key] = np.frombuffer(data, dtype)
        return self.storages[key]


def write_archive(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as `torch.save` does, with numpy arrays as CPU tensors. The file appears whole or not at all.

    The same value gives the same bytes.

    Raises:
        ValueError: something other than dicts, lists, tuples, scalars and arrays.
    """
    path = pathlib.Path(path)
    storages: list[np.ndarray] = []

    def save(array: np.ndarray) -> str:
        storages.append(np.ascontiguousarray(array))
        return str(len(storages) - 1)

    members: list[tuple[str, Any]] = [("data.pkl", restricted_pickle.dumps(value, save))]
    members += [("byteorder", b"little")]
    members += [(f"data/{i}", array) for i, array in enumerate(storages)]
    members += [("version", b"3\n")]
    with files.replacing(path, durable=True) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(f"{path.stem}/{name}")
            info.extra = _padding(file.tell() + 30 + len(info.filename.encode()))
            archive.writestr(info, content if isinstance(content, bytes) else content.tobytes())


def _padding(offset: int) -> bytes:
    """The extra field of a zip header after which the data is aligned; it would begin at `offset` without the field."""
    size = -(offset + 4) % _ALIGNMENT
    return b"FB" + struct.pack("<H", size) + b"\0" * size
