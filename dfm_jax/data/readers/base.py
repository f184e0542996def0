"""What readers are given, and what they share."""

import codecs
import contextlib
import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from dfm_jax.data.readers import compression
from dfm_jax.data.rows import Cut, Rules
from dfm_jax.runtime.errors import UsageError


class Found(NamedTuple):
    """What a file is. kind: of READERS. compression: of compression.TABLE, or ''. encoding: of its text."""

    kind: str
    compression: str = ""
    encoding: str = "utf-8"


class Source(NamedTuple):
    """What a reader is given. where: `FIELD = VALUE`, for errors. groups: some row groups alone."""

    path: pathlib.Path
    found: Found
    rules: Rules
    cut: Cut
    where: str
    groups: range | None = None


@contextlib.contextmanager
def opened(source: Source) -> Iterator[tuple[Any, BinaryIO, int]]:
    """The file's text as a stream of UTF-8 without a mark; the raw file, whose `tell` says how far it is; its size."""
    with open(source.path, "rb") as raw:
        stream = compression.opened(raw, source.found.compression)
        if source.found.encoding == "utf-8-sig":
            stream.read(len(codecs.BOM_UTF8))
        elif source.found.encoding != "utf-8":
            stream = io.BufferedReader(_Transcoded(stream, source.found.encoding), 1 << 20)  # type: ignore[arg-type]
        yield stream, raw, max(os.fstat(raw.fileno()).st_size, 1)


class _Transcoded(io.RawIOBase):
    """UTF-16 or UTF-32 with its mark, as UTF-8; what is invalid becomes a byte that is invalid there too."""

    def __init__(self, stream: Any, encoding: str):
        codecs.register_error("dfm_jax.invalid", lambda error: ("\udcff", error.end))  # type: ignore[union-attr]
        self._stream, self._left = stream, b""
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="dfm_jax.invalid")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            data = self._stream.read(1 << 18)
            text = self._decoder.decode(data, final=not data)
            self._left = text.encode("utf-8", "surrogateescape")
            if not data and not self._left:
                return 0
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def decode(data: bytes) -> tuple[str, bool]:
    """The text, and whether invalid UTF-8 in it was replaced by U+FFFD."""
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        return data.decode(errors="replace"), True


def missing_column(where: str, column: str, present: Sequence[str], place: str) -> UsageError:
    return UsageError(f"{where}: no column {column} in {place}: expected :column= one of {', '.join(present)}")
