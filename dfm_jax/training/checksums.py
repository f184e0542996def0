"""Checksums of a folder's files: orbax has none for array data, where a flipped bit loads silently."""

import hashlib
import os
import pathlib

from dfm_jax import files

NAME = "checksums.json"


def write(folder: str | os.PathLike) -> None:
    """Writes `folder/checksums.json`: the size and SHA-256 of every file below `folder`.

    Flushes each of them to the disk first, so that a folder with checksums also survives a loss of power.
    """
    folder = pathlib.Path(folder)
    entries = {}
    for path in _files(folder):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries[path.relative_to(folder).as_posix()] = {"bytes": file.tell(), "sha256": digest}
    for subfolder in folder.rglob("*/"):
        files.sync_folder(subfolder)
    files.write_json_atomically(folder / NAME, {"files": entries}, durable=True)


def problems(folder: str | os.PathLike, *, only: str = "") -> list[str]:
    """What is wrong with `folder` compared with its checksums, a line per file; empty if it is intact.

    Sizes and names are compared before any content is read. A file that has no checksum is no problem.

    Args:
      only: look at this file alone.
    """
    folder = pathlib.Path(folder)
    try:
        entries = files.read_json(folder / NAME)["files"]
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
        if only:
            expected = {only: expected[only]}
    except Exception as error:  # a damaged file may hold any JSON at all
        return [f"{NAME} is missing or unreadable ({type(error).__name__})"]
    found = []
    for name, (size, _) in expected.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
    if found:
        return found
    for name, (_, digest) in expected.items():
        try:
            with open(folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    found.append(f"{name} does not have its checksum")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
