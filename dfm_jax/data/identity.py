"""What files are, by their contents: SHA-256, remembered by path, size and time, so that nothing is read twice.

The contents decide which corpus it is: a copy with new times, at another place or under other names in the same order
is the same corpus, and of a corpus of which one file was changed the others are known.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

FILE = "hashes.jsonl"
# Some file systems count time in steps of two seconds: what was written a moment ago may be written again unseen.
_SETTLED_SECONDS = 3.0
_LARGE = 1 << 32  # bytes to be read that are worth a word

Stamp = tuple[int, int]  # size in bytes, time of the last change in ns


def stamp(path: pathlib.Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class Memory:
    """The hashes of files, kept in a file of `folder`, one line of JSON each; None keeps them for this process."""

    def __init__(self, folder: pathlib.Path | None = None, note: Callable[[str], None] | None = None):
        """note: is told when there is so much to read that it takes time."""
        self.folder = folder or pathlib.Path(tempfile.gettempdir())  # for copies of files in stores
        self._file = None if folder is None else folder / FILE
        self._note = note
        self._known: dict[str, tuple[Stamp, str]] | None = None
        self._now: dict[str, tuple[Stamp, str]] = {}  # what was read here, however new
        self._seen: dict[str, tuple[Stamp, str]] = {}

    def hash(self, path: pathlib.Path) -> str:
        """SHA-256 of the file, 64 hex digits; '' where it cannot be read."""
        return self.hashes([path])[0]

    def seen(self, path: pathlib.Path) -> tuple[Stamp, str]:
        """The file's stamp and hash when they were first asked for: a later change is not what was identified."""
        name = os.path.abspath(path)
        if name not in self._seen:
            self.hashes([path])
        return self._seen[name]

    def hashes(self, paths: Iterable[pathlib.Path]) -> list[str]:
        """Those of many files, read on several threads."""
        paths = list(paths)
        stamps = {path: stamp(path) for path in paths}
        unknown = [path for path, its in stamps.items() if self._look_up(path, its) is None]
        size = sum(stamps[path][0] for path in unknown)
        if self._note and size > _LARGE:
            self._note(
                f"{len(unknown):,} files, {size / 1e9:,.1f} GB, are read once to know them by their contents; "
                f"their hashes are kept in {self._file}"
            )
        if unknown:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "hash") as pool:
                for path, digest in zip(unknown, pool.map(_sha256, unknown), strict=True):
                    self._now[os.path.abspath(path)] = stamps[path], digest
            self._keep(unknown)
        found = [self._look_up(path, stamps[path]) or "" for path in paths]
        for path, digest in zip(paths, found, strict=True):
            self._seen.setdefault(os.path.abspath(path), (stamps[path], digest))
        return found

    def _look_up(self, path: pathlib.Path, its: Stamp) -> str | None:
        name = os.path.abspath(path)
        for known in (self._now, self._load()):
            if name in known and known[name][0] == its:
                return known[name][1]
        return None

    def _load(self) -> dict[str, tuple[Stamp, str]]:
        if self._known is None:
            self._known = {}
            lines: list[str] = []
            if self._file is not None:
                with contextlib.suppress(OSError):
                    lines = self._file.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines:
                with contextlib.suppress(
                    ValueError, TypeError, RecursionError
                ):  # a line that a killed process has half written
                    name, size, time_ns, digest = json.loads(line)
                    self._known[name] = (size, time_ns), digest
        return self._known

    def _keep(self, paths: list[pathlib.Path]) -> None:
        settled = (time.time() - _SETTLED_SECONDS) * 1e9
        names = [name for name in map(os.path.abspath, paths) if self._now[name][0][1] < settled and self._now[name][1]]
        if self._file is None or not names:
            return
        lines = [json.dumps([name, *self._now[name][0], self._now[name][1]]) + "\n" for name in names]
        # Without the memory everything works, only slower: a folder that cannot be written says so elsewhere.
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "a", encoding="utf-8") as file:
                file.writelines(lines)


def _sha256(path: pathlib.Path) -> str:
    """'' where the file cannot be read: its reader says so, and stops or goes on as it was told."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
