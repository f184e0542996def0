"""Compressed files: told by their first bytes, read as a stream. A new compression is a line in TABLE."""

import io
import pathlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple


class Compression(NamedTuple):
    """suffixes: of its files. magic: their first bytes. open: the decompressed stream of a binary file."""

    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...]
    open: Callable[[BinaryIO], Any]


def _gzip(raw: BinaryIO) -> Any:
    import gzip

    return gzip.GzipFile(fileobj=raw)


def _bzip2(raw: BinaryIO) -> Any:
    import bz2

    return bz2.BZ2File(raw)


def _xz(raw: BinaryIO) -> Any:
    import lzma

    return lzma.LZMAFile(raw)


def _zstd(raw: BinaryIO) -> Any:
    return io.BufferedReader(_ZstdFrames(raw), 1 << 20)  # type: ignore[arg-type]


# Skippable frames, which some programs put first, have sixteen magic numbers.
_ZSTD_MAGIC = (b"\x28\xb5\x2f\xfd", *(bytes((0x50 + i, 0x2A, 0x4D, 0x18)) for i in range(16)))

TABLE: dict[str, Compression] = {
    "gzip": Compression((".gz",), (b"\x1f\x8b",), _gzip),
    "zstd": Compression((".zst", ".zstd"), _ZSTD_MAGIC, _zstd),
    "bzip2": Compression((".bz2",), tuple(b"BZh%d" % i for i in range(1, 10)), _bzip2),
    "xz": Compression((".xz",), (b"\xfd7zXZ\x00",), _xz),
}
SUFFIXES = tuple(suffix for entry in TABLE.values() for suffix in entry.suffixes)


def of_name(path: pathlib.Path) -> tuple[str, str]:
    """The compression that a name says ('' for none), and the suffix before it, in lower case."""
    for name, entry in TABLE.items():
        if path.suffix.lower() in entry.suffixes:
            return name, path.with_suffix("").suffix.lower()
    return "", path.suffix.lower()


def of_content(first: bytes) -> str:
    """The compression that a file's first bytes say; '' for none."""
    return next((name for name, entry in TABLE.items() if first.startswith(entry.magic)), "")


def opened(raw: BinaryIO, name: str) -> Any:
    """The decompressed stream of `raw`, or `raw` where name is ''."""
    return TABLE[name].open(raw) if name else raw


class _ZstdFrames(io.RawIOBase):
    """All frames of a .zst file; unlike zstandard's own reader it refuses a file that ends in mid-frame."""

    def __init__(self, raw: BinaryIO):
        import zstandard

        # 2 GiB is the widest window that the format's own program writes (`zstd --long=31`).
        self._raw, self._context = raw, zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame, self._input, self._output = self._context.decompressobj(), b"", b""
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
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
