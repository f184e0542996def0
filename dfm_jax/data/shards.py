"""Shards: one logical token stream in flat .npy files.

A prepared folder holds `manifest.json` and its shards. Block i of length L is tokens [i L, (i + 1) L) of the stream,
wherever the files' boundaries lie, so that the length is a view and only the corpus's last partial block is lost.
"""

import contextlib
import hashlib
import io
import mmap
import os
import pathlib
import threading
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from dfm_jax.data.manifest import Manifest, Shard
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.files import write_atomically

# A shard's checksums: beside NAME.npy, NAME.crc holds the CRC-32 of every CHUNK bytes of its tokens, little-endian.
# Each chunk is compared with its own when it is first read, so that no altered token is trained on. The manifest's
# SHA-256 is of the shard as a whole, and for `verify`.
CHUNK = 4096


def header(dtype: str, num_tokens: int) -> bytes:
    """The .npy header of a flat array; its size does not depend on num_tokens."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": (num_tokens,)})
    return buffer.getvalue()


class Checksums:
    """The CRC-32 of every CHUNK bytes of what is given to `update`, in parts of any size."""

    def __init__(self):
        self._done: list[int] = []
        self._last, self._length = 0, 0

    def update(self, data: memoryview | bytes) -> None:
        data = memoryview(data).cast("B")
        start = 0
        while start < len(data):
            part = data[start : start + CHUNK - self._length]
            self._last = zlib.crc32(part, self._last)
            self._length += len(part)
            start += len(part)
            if self._length == CHUNK:
                self._done.append(self._last)
                self._last, self._length = 0, 0

    def finish(self) -> bytes:
        last = [self._last] if self._length else []
        return np.array(self._done + last, "<u4").tobytes()


def _checksums_of(shard: pathlib.Path) -> pathlib.Path:
    return shard.with_suffix(".crc")


class ShardWriter:
    """Writes one shard to a temporary name; `close` gives it its own."""

    def __init__(self, folder: pathlib.Path, name: str, dtype: str):
        self._path, self._temporary, self._dtype = folder / name, folder / f".tmp-{name}", dtype
        self._hash, self._checksums = hashlib.sha256(), Checksums()
        self.num_tokens = 0
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by close or abort)
        self._file.write(header(dtype, 0))

    def write(self, tokens: np.ndarray) -> None:
        data = np.ascontiguousarray(tokens, self._dtype).data
        self._hash.update(data)
        self._checksums.update(data)
        self._file.write(data)
        self.num_tokens += len(tokens)

    def close(self) -> Shard:
        self._file.seek(0)
        self._file.write(header(self._dtype, self.num_tokens))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        write_atomically(_checksums_of(self._path), self._checksums.finish(), durable=True)
        os.replace(self._temporary, self._path)
        return Shard(self._path.name, self.num_tokens, self._hash.hexdigest())

    def abort(self) -> None:
        """Removes the temporary file; does nothing after `close`."""
        if self._file.closed:
            return
        with open(os.devnull, "wb") as null:  # what is still buffered must not be flushed to a full disk
            os.dup2(null.fileno(), self._file.fileno())
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def check_size(folder: pathlib.Path, shard: Shard, dtype: str) -> None:
    expected = len(header(dtype, shard.num_tokens)) + shard.num_tokens * np.dtype(dtype).itemsize
    try:
        size = os.stat(folder / shard.name).st_size
    except OSError as error:
        raise WorldError(f"{folder / shard.name}: {error.strerror}, and the manifest lists it: {_REDO}") from error
    if size != expected:
        raise WorldError(f"{folder / shard.name}: {size} bytes, the manifest says {expected}: {_REDO}")


_REDO = "delete this folder and prepare the corpus again"


def verify_shard(folder: pathlib.Path, shard: Shard, dtype: str) -> np.ndarray:
    """The checksums of a shard's chunks, from reading it whole. Raises WorldError where its SHA-256 is not right."""
    expected = header(dtype, shard.num_tokens)
    digest, checksums = hashlib.sha256(), Checksums()
    with open(folder / shard.name, "rb") as file:
        right = file.read(len(expected)) == expected
        while data := file.read(1 << 22):
            digest.update(data)
            checksums.update(data)
    if not right or digest.hexdigest() != shard.sha256:
        raise WorldError(
            f"{folder / shard.name}: altered since it was written "
            f"(sha256 {digest.hexdigest()[:16]}..., the manifest says {shard.sha256[:16]}...): {_REDO}"
        )
    return np.frombuffer(checksums.finish(), "<u4")


# A shard in use: its tokens, their bytes, the checksums of its chunks, and which chunks have been compared.
_Opened = tuple[np.ndarray, memoryview, memoryview, bytearray]


class ShardFiles:
    """Some shards as one row of tokens, memory-mapped on first use.

    What is read is compared with its checksums when it is first read.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        shards: Sequence[Shard],
        dtype: str,
        fetch: Callable[[str], None] | None = None,
    ):
        """fetch: brings a file of that name into the folder where it is not there yet."""
        self._folder, self._shards, self._dtype, self._fetch = folder, shards, np.dtype(dtype), fetch
        self._ends = np.cumsum([shard.num_tokens for shard in shards], dtype=np.int64)
        self._opened: list[_Opened | None] = [None] * len(shards)
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop): a view where one shard holds them all, else a copy.

        Raises WorldError, naming the shard, where they are not what was written.
        """
        index = int(np.searchsorted(self._ends, start, side="right"))
        begin = int(self._ends[index - 1]) if index else 0
        if stop <= self._ends[index]:
            return self._read(index, start - begin, stop - begin)
        parts = []
        while start < stop:
            end = min(stop, int(self._ends[index]))
            parts.append(self._read(index, start - begin, end - begin))
            start = begin = end
            index += 1
        return np.concatenate(parts)

    def _read(self, index: int, start: int, stop: int) -> np.ndarray:
        tokens, data, checksums, seen = self._opened[index] or self._open(index)
        size = self._dtype.itemsize
        for chunk in range(start * size // CHUNK, -(-stop * size // CHUNK)):
            if seen[chunk]:
                continue
            if zlib.crc32(data[chunk * CHUNK : (chunk + 1) * CHUNK]) != checksums[chunk]:
                raise WorldError(
                    f"{self._folder / self._shards[index].name}: altered since it was written "
                    f"(among tokens {chunk * CHUNK // size} to {(chunk + 1) * CHUNK // size - 1}): {_REDO}"
                )
            seen[chunk] = 1
        return tokens[start:stop]

    def _open(self, index: int) -> "_Opened":
        with self._lock:
            if found := self._opened[index]:
                return found
            shard = self._shards[index]
            path = self._folder / shard.name
            if self._fetch is not None:
                self._fetch(shard.name)
                check_size(self._folder, shard, self._dtype.str)
                with contextlib.suppress(WorldError):  # shards of version 0.1 have none
                    self._fetch(_checksums_of(path).name)
            expected = header(self._dtype.str, shard.num_tokens)
            try:
                with open(path, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise WorldError(f"{path}: cannot be read ({error}): {_REDO}") from error
            if mapped[: len(expected)] != expected:
                raise WorldError(f"{path}: its header is not what was written: {_REDO}")
            if hasattr(mmap, "MADV_RANDOM"):  # read-ahead would fetch 64 times what a shuffled block needs
                mapped.madvise(mmap.MADV_RANDOM)
            tokens = np.frombuffer(mapped, self._dtype, shard.num_tokens, len(expected))
            checksums = self._checksums(shard).astype("=u4").data  # its items are Python's integers
            opened = tokens, memoryview(mapped)[len(expected) :], checksums, bytearray(len(checksums))
            self._opened[index] = opened
            return opened

    def _checksums(self, shard: Shard) -> np.ndarray:
        """Read, or, where version 0.1 wrote none, made while the whole shard is verified, and kept if possible."""
        path = _checksums_of(self._folder / shard.name)
        count = -(-shard.num_tokens * self._dtype.itemsize // CHUNK)
        try:
            checksums = np.frombuffer(path.read_bytes(), "<u4")
            if len(checksums) == count:
                return checksums
        except (OSError, ValueError):
            pass
        checksums = verify_shard(self._folder, shard, self._dtype.str)
        with contextlib.suppress(OSError):  # a folder that cannot be written: verified again by the next run
            write_atomically(path, checksums.tobytes())
        return checksums


class TokenStream:
    """The tokens of a prepared folder."""

    def __init__(self, folder: pathlib.Path, manifest: Manifest, fetch: Callable[[str], None] | None = None):
        """fetch: brings a shard into the folder where it is not there yet."""
        self.folder, self.manifest = folder, manifest
        self.num_tokens = manifest.num_tokens
        self.num_stored = sum(shard.num_tokens for shard in manifest.shards)  # with the marks of records
        self.dtype = np.dtype(manifest.dtype)
        self._files = ShardFiles(folder, manifest.shards, manifest.dtype, fetch)

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def num_blocks(self, length: int) -> int:
        """Whole blocks of `length` tokens."""
        return sum(tokens // length for tokens in self.manifest.segments or (self.num_tokens,))

    def blocks(self, length: int) -> "Blocks":
        """The stream cut into blocks of `length` tokens. Raises WorldError when there is not one whole block."""
        return Blocks(self, length)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop): a view where one shard holds them all, else a copy.

        Raises WorldError, naming the shard, where they are not what was written.
        """
        return self._files.read(start, stop)


class Blocks(Sequence):
    """Random access to blocks of one length; each item is (length,) in the stream's dtype (uint16 or uint32)."""

    def __init__(self, stream: TokenStream, length: int):
        if length < 1:
            raise ValueError(f"length = {length}: expected a positive number of tokens")
        segments = np.asarray(stream.manifest.segments or (stream.num_tokens,), np.int64)
        self._stream, self.length = stream, length
        self._starts = np.cumsum(segments) - segments
        self._ends = np.cumsum(segments // length)
        if not self._ends[-1]:
            raise WorldError(
                f"{stream.folder}: {stream.num_tokens} tokens, not one block of model.length = {length}: "
                "expected a longer corpus or a smaller model.length"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        segment = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[segment - 1]) if segment else 0
        start = int(self._starts[segment]) + (int(index) - first) * self.length
        return self._stream.read(start, start + self.length)
