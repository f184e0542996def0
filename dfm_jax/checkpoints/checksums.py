"""Checksums of a folder's files. Orbax has none for array data, so a flipped bit would load in silence."""

import concurrent.futures
import hashlib
import os
import pathlib

from dfm_jax.runtime import files

NAME = "checksums.json"
# Files that are read at a time. Hashing releases Python's lock, and one reader does not use all of a disk's speed.
_READERS = min(16, os.cpu_count() or 1)


def write(folder: str | os.PathLike) -> None:
    """Writes `folder/checksums.json`: the size and SHA-256 of every file below `folder`.

    It first flushes every file to the disk. A folder with checksums thus also survives a loss of power.
    """
    folder = pathlib.Path(folder)

    def entry(path: pathlib.Path) -> dict[str, int | str]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"bytes": file.tell(), "sha256": digest}

    paths = _files(folder)
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        names = (path.relative_to(folder).as_posix() for path in paths)
        entries = dict(zip(names, readers.map(entry, paths), strict=True))
    for subfolder in folder.rglob("*/"):
        files.sync_folder(subfolder)
    files.write_json_atomically(folder / NAME, {"files": entries}, durable=True)


def problems(folder: str | os.PathLike, *, only: str = "") -> list[str]:
    """Compares `folder` with its checksums: a line for every file that differs, and none if the folder is intact.

    Names and sizes are compared before any content is read. A file without a checksum is ignored.

    Args:
      only: check only this file.
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

    def problem(name: str) -> str | None:
        try:
            with open(folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected[name][1]:
                    return f"{name} does not have its checksum"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return None

    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        return [line for line in readers.map(problem, expected) if line]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
