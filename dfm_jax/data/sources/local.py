"""Local files: which ones a path means, and how they are divided into units."""

import functools
import glob
import hashlib
import itertools
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dfm_jax.data import readers
from dfm_jax.data.identity import Memory, Stamp, stamp
from dfm_jax.data.rows import Cut, Item, Part, Rules, Unit
from dfm_jax.runtime.errors import UsageError, WorldError

# Files are put together to units of at least this size, so that a folder of many small files gives few shards, and
# larger files that can be divided are divided, so that machines can share them.
UNIT_BYTES = 1 << 28


class Files(NamedTuple):
    """paths: sorted by name. left_out: what a folder or glob holds and is not read, a line for each reason."""

    paths: list[pathlib.Path]
    left_out: tuple[str, ...] = ()


def find(pattern: str, where: str) -> Files:
    """The files of a path, folder (at any depth) or glob. where: `FIELD = VALUE`, for errors.

    Links are followed, to files and to folders, and every file is taken once, under the first of its names. A single
    file, and the files of a glob that matches no name of a known kind, may have any name.
    Raises WorldError where there is none, or a folder cannot be listed.
    """
    path = pathlib.Path(os.path.expanduser(pattern))
    if os.path.isfile(path):
        readers.recognise(path)  # what is no text is refused before any work
        return Files([path])
    left_out: dict[str, list[str]] = {}
    any_name = False
    if os.path.isdir(path):
        found, root = _walk(path, left_out, where), path
    elif os.path.exists(path):
        raise WorldError(f"{where}: {path} is neither a file nor a folder: expected one")
    else:
        found, root = [pathlib.Path(p) for p in glob.glob(_escaped(path), recursive=True)], path.parent
        if folders := [os.path.relpath(p, root) for p in found if p.is_dir()] if "**" not in pattern else []:
            left_out["folders (a pattern with ** goes into them)"] = folders
        found = [p for p in found if not p.is_dir()]
        any_name = not any(readers.kind_of_name(p) for p in found)
        if not found and not glob.has_magic(str(path)):
            raise WorldError(f"{where}: no such file or folder: expected a path that exists")
    files, seen = [], set()
    for p in sorted(found):
        name = os.path.relpath(p, root)
        if not p.is_file():
            left_out.setdefault("broken links or no regular files", []).append(name)
        elif not any_name and not readers.kind_of_name(p):
            left_out.setdefault("files of unknown kinds", []).append(name)
        elif (real := os.path.realpath(p)) in seen:
            left_out.setdefault("other names of the same file", []).append(name)
        else:
            seen.add(real)
            files.append(p)
    lines = tuple(_line(reason, names) for reason, names in sorted(left_out.items()))
    if not files:
        others = f" ({'; '.join(lines)})" if lines else ""
        raise WorldError(
            f"{where}: no file there{others}: expected {readers.ACCEPTED}; a glob such as 'DIR/*.md' takes any name"
        )
    return Files(files, lines)


def _walk(root: pathlib.Path, left_out: dict[str, list[str]], where: str) -> list[pathlib.Path]:
    """Everything below `root` that is no folder and not hidden; every folder once, whatever links lead to it."""

    def refuse(error: OSError) -> None:
        raise WorldError(f"{where}: {error.filename} cannot be listed ({error.strerror}): expected a readable folder")

    found, seen = [], {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            hidden = name.startswith(".")
            if hidden or real in seen:
                reason = "hidden folders" if hidden else "other names of the same folder"
                left_out.setdefault(reason, []).append(os.path.relpath(os.path.join(folder, name), root))
                folders.remove(name)
            seen.add(real)
        folders.sort()
        for name in names:
            path = pathlib.Path(folder, name)
            if name.startswith("."):
                left_out.setdefault("hidden files", []).append(os.path.relpath(path, root))
            else:
                found.append(path)
    return found


def _line(reason: str, names: Sequence[str]) -> str:
    """'12 files of unknown kinds (.png 10, .csv 2): a.png, b.png, ...'."""
    counts = Counter(pathlib.Path(name).suffix.lower() or "no suffix" for name in names)
    kinds = ", ".join(f"{kind} {count}" for kind, count in counts.most_common(5))
    shown = ", ".join(os.fsencode(name).decode(errors="replace") for name in sorted(names)[:5])
    return f"{len(names)} {reason} ({kinds}): {shown}{', ...' if len(names) > 5 else ''}"


def _escaped(pattern: pathlib.Path) -> str:
    """The glob in which the leading folders that exist stand for themselves, whatever signs are in their names."""
    for folder in pattern.parents:
        if folder.is_dir():
            rest = pattern.relative_to(folder)
            return os.path.join(glob.escape(str(folder)), str(rest))
    return str(pattern)


def stamps(files: Sequence[pathlib.Path]) -> list[list[str | int]]:
    """Names, sizes and times: version 0.1's identity."""
    root = os.path.commonpath([f.absolute().parent for f in files])
    return [[os.path.relpath(f.absolute(), root), *stamp(f)] for f in files]


def check_options(files: Sequence[pathlib.Path], options: Sequence[str], spec: str, field: str) -> None:
    """Raises UsageError for an option of a spec that means nothing for any of the files."""
    kinds = {readers.kind_of_name(path) or readers.recognise(path).kind for path in files}
    for option in options:
        if not any(option in readers.READERS[kind].options for kind in kinds):
            meaning = sorted({accepted for kind in kinds for accepted in readers.READERS[kind].options})
            raise UsageError(
                f"{field} = {spec}: {option}= means nothing for {' and '.join(sorted(kinds))} files: expected "
                f"{' or '.join(f'{name}=' for name in meaning)} or nothing"
            )


def units(files: Sequence[pathlib.Path], rules: Rules, where: str, memory: Memory | None = None) -> list[Unit]:
    """The files, or parts of them, in units of about UNIT_BYTES. memory: gives each part its key."""
    return grouped([part for file in files for part in _parts(file, rules, where, memory)])


def grouped(parts: Sequence[Part]) -> list[Unit]:
    """Units of about UNIT_BYTES, of parts in their order."""
    grouped: list[list[Part]] = []
    size = UNIT_BYTES
    for part in parts:
        if size >= UNIT_BYTES:
            grouped.append([])
            size = 0
        grouped[-1].append(part)
        size += part.size
    return [Unit(parts) for parts in grouped]


def _parts(path: pathlib.Path, rules: Rules, where: str, memory: Memory | None) -> list["FilePart"]:
    size = path.stat().st_size
    make = functools.partial(FilePart, path, rules, where, memory)
    groups = readers.READERS[readers.kind_of_name(path) or "text"].groups
    count = 0
    if groups and size >= 2 * UNIT_BYTES:
        try:
            with readers.readable(path):
                count = groups(path)
        except WorldError:
            pass  # said when it is read
    pieces = min(size // UNIT_BYTES, count)
    if pieces < 2:
        return [make(size)]
    ends = [count * i // pieces for i in range(pieces + 1)]
    return [make(size // pieces, range(*pair)) for pair in itertools.pairwise(ends)]


class FilePart:
    """A file, or some row groups of one."""

    def __init__(
        self,
        path: pathlib.Path,
        rules: Rules,
        where: str,
        memory: Memory | None,
        size: int,
        groups: range | None = None,
    ):
        self.name = path.name + (f", row groups {groups.start}-{groups.stop - 1}" if groups else "")
        self.path, self.size, self._groups = path, size, groups
        self._rules, self._where = rules, where
        self._read = 0.0
        self._stamp: Stamp | None = None
        self.key = ""
        if memory is not None:
            self._stamp, content = memory.seen(path)
            reading = [content, readers.kind_of_name(path), rules.column, rules.documents, rules.flags(), str(groups)]
            reading += [] if rules.form is None else [rules.form.identity]
            self.key = hashlib.sha256(json.dumps(reading).encode()).hexdigest()[:32] if content else ""

    def fraction(self) -> float:
        return min(1.0, self._read)

    def rows(self, skip: int, cut: Cut) -> Iterator[Item]:
        self._read = 0.0
        self._check()
        for row, fraction in readers.read(self.path, self._rules, cut, self._where, self._groups):
            self._read = fraction
            if skip:
                skip -= 1
            else:
                yield row
        self._read = 1.0
        self._check()

    def _check(self) -> None:
        if self._stamp is not None and self.path.exists() and stamp(self.path) != self._stamp:
            raise WorldError(
                f"{self.path}: changed while it was being prepared: expected files that stay as they are; "
                "what is prepared stays, run again"
            )
