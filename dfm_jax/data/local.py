"""Local files as rows of text: .txt, .jsonl (both also .gz, .zst), .parquet."""

import codecs
import contextlib
import glob
import io
import itertools
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from dfm_jax.data.rows import Row, Rules
from dfm_jax.data.tokenizers import PIECE_CHARS, safe_cut
from dfm_jax.errors import UsageError, WorldError

SUFFIXES = (".txt", ".raw", ".jsonl", ".parquet")
COMPRESSED = (".gz", ".zst")

# Files are put together to units of at least this size, so that a folder of many small files gives few shards, and
# larger .parquet files are divided between row groups, so that machines can share them.
UNIT_BYTES = 1 << 28


def find(pattern: str, where: str) -> list[pathlib.Path]:
    """The files of a path, folder (at any depth) or glob, sorted by name; hidden ones are left out.

    where: `FIELD=VALUE`, for errors. A single file may have any name; one of unknown kind is read as text.
    """
    path = pathlib.Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    else:
        found = [pathlib.Path(p) for p in glob.glob(str(path), recursive=True)]
    files = sorted(p for p in found if p.is_file() and kind(p))
    if not files:
        raise WorldError(
            f"{where}: no file there: accepted files that end in {', '.join(SUFFIXES)}, "
            f"the text ones also with {' or '.join(COMPRESSED)}"
        )
    return files


def kind(path: pathlib.Path) -> str:
    """'.txt', '.jsonl' or '.parquet' without regard to compression; '' when the name says nothing."""
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    return {".raw": ".txt"}.get(suffix, suffix) if suffix in SUFFIXES else ""


def identity(files: Sequence[pathlib.Path]) -> list[Any]:
    """Changes whenever a file's text may have changed."""
    root = os.path.commonpath([f.absolute().parent for f in files])
    stats = [(os.path.relpath(f.absolute(), root), f.stat()) for f in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def units(files: Sequence[pathlib.Path], rules: Rules, where: str) -> list["FilesUnit"]:
    grouped: list[list[Part]] = []
    size = UNIT_BYTES
    for part in (part for file in files for part in _parts(file)):
        if size >= UNIT_BYTES:
            grouped.append([])
            size = 0
        grouped[-1].append(part)
        size += part.size
    return [FilesUnit(unit, rules, where) for unit in grouped]


class Part(NamedTuple):
    """A file, or some row groups of a .parquet file; size in bytes on the disk."""

    path: pathlib.Path
    size: int
    groups: range | None = None


def _parts(path: pathlib.Path) -> list[Part]:
    size = path.stat().st_size
    if kind(path) != ".parquet" or size < 2 * UNIT_BYTES:
        return [Part(path, size)]
    import pyarrow.parquet

    with _readable(path), pyarrow.parquet.ParquetFile(path) as file:
        count = file.metadata.num_row_groups
    pieces = min(size // UNIT_BYTES, count)
    if pieces < 2:
        return [Part(path, size)]
    ends = [count * i // pieces for i in range(pieces + 1)]
    return [Part(path, size // pieces, range(*pair)) for pair in itertools.pairwise(ends)]


class FilesUnit:
    """Some files in a row, or some row groups of one."""

    def __init__(self, parts: Sequence[Part], rules: Rules, where: str):
        first = parts[0]
        rows = f", row groups {first.groups.start}-{first.groups.stop - 1}" if first.groups else ""
        self.name = first.path.name + rows + (f" and {len(parts) - 1} more" if len(parts) > 1 else "")
        self.size = sum(part.size for part in parts)
        self._parts, self._rules, self._where = parts, rules, where
        self._read = 0.0

    def fraction(self) -> float:
        return min(1.0, self._read / max(self.size, 1))

    def rows(self, skip: int) -> Iterator[Row | None]:
        before = 0
        for part in self._parts:
            for row, position in _rows_of(part, self._rules, self._where):
                self._read = before + position * part.size
                if skip:
                    skip -= 1
                else:
                    yield row
            before += part.size


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Turns every way in which a file's reader fails into a WorldError."""
    import pyarrow
    import zstandard

    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, pyarrow.ArrowException) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        compression = path.suffix if path.suffix in COMPRESSED else ""
        raise WorldError(f"{path}: cannot be read as {kind(path) or '.txt'}{compression}: {reason}") from error


def _rows_of(part: Part, rules: Rules, where: str) -> Iterator[tuple[Row | None, float]]:
    """Rows, each with the fraction of the part that has been read."""
    path = part.path
    with _readable(path):
        if kind(path) == ".parquet":
            yield from _parquet(part, rules.column, where)
            return
        with open(path, "rb") as raw:
            size = max(os.fstat(raw.fileno()).st_size, 1)
            file = _decompressed(raw, path.suffix)
            if kind(path) == ".jsonl":
                rows = _jsonl(file, rules.column, path, where)
            else:
                rows = _lines(file, rules) if rules.documents == "lines" else _whole(file)
            for row in rows:
                yield row, raw.tell() / size


def _decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        import gzip

        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if suffix == ".zst":
        return io.BufferedReader(_ZstdFrames(raw), 1 << 20)  # type: ignore[return-value]
    return raw


class _ZstdFrames(io.RawIOBase):
    """All frames of a .zst file; unlike zstandard's own reader it refuses a file that ends in mid-frame."""

    def __init__(self, raw: BinaryIO):
        import zstandard

        self._raw, self._context = raw, zstandard.ZstdDecompressor()
        self._frame, self._input, self._output = self._context.decompressobj(), b"", b""
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._output:
            data = self._input or self._raw.read(1 << 17)
            self._input = b""
            if not data:
                if self._begun:
                    raise EOFError("the file ends in the middle of a frame")
                return 0
            self._begun = True
            self._output = self._frame.decompress(data)
            if self._frame.eof:
                self._input = self._frame.unused_data
                self._frame, self._begun = self._context.decompressobj(), False
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


def _lines(file: BinaryIO, rules: Rules) -> Iterator[Row]:
    for number, line in enumerate(file):
        text, repaired = decode(line)
        if number == 0:
            text = text.removeprefix("\ufeff")
        if rules.keep_newline:
            text = text if text.strip() else ""
        else:
            text = text.rstrip("\r\n")
        yield Row(text, True, repaired)


def _whole(file: BinaryIO) -> Iterator[Row]:
    """The file as one document, in pieces whose tokens do not depend on the cuts."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    text, repaired = "", False
    while data := file.read(1 << 20):
        pending = decoder.getstate()[0]
        new = decoder.decode(data)
        repaired = repaired or ("\ufffd" in new and not _valid(pending + data))
        text += new
        while len(text) > 2 * PIECE_CHARS and (cut := safe_cut(text, PIECE_CHARS)) > 0:
            yield Row(text[:cut], False)
            text = text[cut:]
    rest = decoder.decode(b"", final=True)
    yield Row(text + rest, True, repaired or bool(rest))


def _valid(data: bytes) -> bool:
    """Whether data is UTF-8 up to a character that its end may cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def decode(data: bytes) -> tuple[str, bool]:
    """The text, and whether invalid UTF-8 in it was replaced by U+FFFD."""
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        return data.decode(errors="replace"), True


_SURROGATE = re.compile("[\ud800-\udfff]")


def _jsonl(file: BinaryIO, column: str, path: pathlib.Path, where: str) -> Iterator[Row | None]:
    for number, line in enumerate(file, 1):
        text, repaired = decode(line)
        if not text.strip():
            continue
        try:
            row = json.loads(text.removeprefix("\ufeff"))
        except ValueError as error:
            raise WorldError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise WorldError(f"{path}, line {number}: not a JSON object: accepted one object a line")
        if column not in row:
            raise missing_column(where, column, list(row), f"{path}, line {number}")
        value = row[column]
        if value is None:
            yield None
            continue
        if not isinstance(value, str):
            raise UsageError(f"{where}: column={column} of {path}, line {number} is no text: accepted a text column")
        if _SURROGATE.search(value):  # "\ud800" alone is valid JSON and no text
            value, repaired = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), True
        yield Row(value, True, repaired)


def missing_column(where: str, column: str, present: Sequence[str], place: str) -> UsageError:
    return UsageError(f"{where}: no column {column} in {place}: accepted :column= one of {', '.join(present)}")


def _parquet(part: Part, column: str, where: str) -> Iterator[tuple[Row | None, float]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(part.path) as file:
        if column not in file.schema_arrow.names:
            raise missing_column(where, column, file.schema_arrow.names, str(part.path))
        groups = list(part.groups or range(file.metadata.num_row_groups))
        read, total = 0, max(sum(file.metadata.row_group(i).num_rows for i in groups), 1)
        for batch in file.iter_batches(256, row_groups=groups, columns=[column]):
            read += batch.num_rows
            for row in column_rows(batch.column(0), where, column):
                yield row, read / total


def column_rows(array: Any, where: str, column: str) -> Iterator[Row | None]:
    """The rows of an Arrow array of strings of any layout."""
    import pyarrow

    types = pyarrow.types
    layout = array.type.value_type if types.is_dictionary(array.type) else array.type
    if not (types.is_string(layout) or types.is_large_string(layout) or types.is_string_view(layout)):
        raise UsageError(f"{where}: column={column} holds {array.type}: accepted a text column")
    try:
        for text in array.to_pylist():
            yield None if text is None else Row(text)
    except UnicodeDecodeError:  # to_pylist raises before the first row
        for data in array.cast(layout).cast(pyarrow.large_binary()).to_pylist():
            yield None if data is None else Row(*_repaired(data))


def _repaired(data: bytes) -> tuple[str, bool, bool]:
    text, repaired = decode(data)
    return text, True, repaired
