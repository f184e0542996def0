"""Files that appear whole or not at all."""

import contextlib
import io
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from dfm_jax.runtime import utf8
from dfm_jax.runtime.errors import WorldError


def _read_umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


# Read once, before there are threads: what another thread makes in the meantime would get the strict mask.
_UMASK = _read_umask()


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A file to write to that replaces `path` when the context ends; a reader sees the old file or the new one.

    It is a temporary file in the same folder, which is then renamed. With `durable` both are flushed to the disk
    first, so that the file also survives a loss of power.

    Raises:
      OSError: nothing could be written. After this or any other error an earlier file is untouched and no temporary
        file is left.
    """
    path = pathlib.Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        with open(temporary, "wb") as file:  # by its name, which a library that writes by name is given
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp gives 0600, which hides a run from its group
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_atomically(path: str | os.PathLike, content: str | bytes, *, durable: bool = False) -> None:
    """Replaces `path` by `content` (text as UTF-8), as `replacing` does."""
    with replacing(path, durable=durable) as file:
        file.write(utf8.encoded(content) if isinstance(content, str) else content)


def write_json_atomically(path: str | os.PathLike, value: Any, *, durable: bool = False) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinities, which JSON lacks, raise ValueError."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n", durable=durable)


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      WorldError: the file is missing, unreadable or no JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WorldError(f"{path}: expected a readable JSON file ({error})") from None


def load_array(path: str | os.PathLike, shape: tuple[int, ...], field: str) -> np.ndarray:
    """The numbers of a .npy file.

    Raises:
      WorldError: naming `field`, where the file is missing, no such array, or of another shape.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise WorldError(f"{field} = {path}: expected a .npy file that can be read ({error})") from None
    if array.shape != shape or array.dtype.kind not in "iuf":
        raise WorldError(f"{field} = {path}: {array.dtype} of shape {array.shape}: expected numbers of shape {shape}")
    return array


def save_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Writes a .npy file, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def ensure_writable(folder: str | os.PathLike, *, field: str = "workdir") -> pathlib.Path:
    """Makes `folder` and its parents, and proves by writing that files can be made in it.

    Raises:
      WorldError: naming `field`, the folder and the system's reason.
    """
    folder = pathlib.Path(folder)
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)):  # what pathlib makes of s3://...
        raise WorldError(f"{field} = {folder}: expected a folder on a file system; stores are for text and shards")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        reason = error.strerror or error
        raise WorldError(f"{field} = {folder}: expected a folder that can be written to ({reason})") from None
    return folder


def sync_folder(folder: str | os.PathLike) -> None:
    """Flushes a folder's entries (names, renames) to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
