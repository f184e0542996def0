"""Shards: one logical token stream in flat .npy files, and the manifest that describes them.

A prepared folder holds `manifest.json` and its shards. Block i of length L is tokens [i L, (i + 1) L) of the stream,
wherever the files' boundaries lie, so that the length is a view and only the corpus's last partial block is lost.
"""

import dataclasses
import functools
import hashlib
import io
import json
import mmap
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from dfm_jax.errors import WorldError
from dfm_jax.files import write_json_atomically

FORMAT = 1
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of the stream; `sha256` is that of its tokens, little-endian, without the .npy header."""

    name: str
    num_tokens: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds. Counts are of documents, tokens (EOS included) and UTF-8 bytes (EOS excluded)."""

    corpus: str
    split: str
    tokenizer: str
    vocab_size: int
    eos_id: int
    dtype: str
    packing: str
    num_documents: int
    num_tokens: int
    num_bytes: int
    repaired: int  # documents whose invalid UTF-8 was replaced by U+FFFD
    skipped: int  # rows without text
    shards: tuple[Shard, ...]
    segments: tuple[int, ...]  # tokens of each run that is cut into blocks by itself; empty: the whole stream is one
    code_version: str
    format: int = FORMAT

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the tokens, their order and their tokenizer, whatever they were read from: 16 hex digits."""
        content = [self.tokenizer, self.vocab_size, self.eos_id, self.segments, [s.sha256 for s in self.shards]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @staticmethod
    def load(folder: pathlib.Path) -> "Manifest":
        """Raises WorldError when there is none or it cannot be read."""
        path = folder / MANIFEST
        try:
            fields = json.loads(path.read_text())
            if fields.get("format") != FORMAT:
                raise WorldError(f"{path}: format={fields.get('format')}: accepted {FORMAT}; prepare the corpus again")
            fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
            fields["segments"] = tuple(fields["segments"])
            return Manifest(**fields)
        except OSError as error:
            raise WorldError(f"{path}: {error.strerror}: accepted a folder made by --mode=prepare") from error
        except (ValueError, TypeError, KeyError) as error:
            raise WorldError(f"{path}: not a manifest of this program ({error}): prepare the corpus again") from error

    def save(self, folder: pathlib.Path) -> None:
        write_json_atomically(folder / MANIFEST, dataclasses.asdict(self), durable=True)


def header(dtype: str, num_tokens: int) -> bytes:
    """The .npy header of a flat array; its size does not depend on num_tokens."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": (num_tokens,)})
    return buffer.getvalue()


class ShardWriter:
    """Writes one shard to a temporary name; `close` gives it its own."""

    def __init__(self, folder: pathlib.Path, name: str, dtype: str):
        self._path, self._temporary, self._dtype = folder / name, folder / f".tmp-{name}", dtype
        self._hash = hashlib.sha256()
        self.num_tokens = 0
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by close or abort)
        self._file.write(header(dtype, 0))

    def write(self, tokens: np.ndarray) -> None:
        data = np.ascontiguousarray(tokens, self._dtype).data
        self._hash.update(data)
        self._file.write(data)
        self.num_tokens += len(tokens)

    def close(self) -> Shard:
        self._file.seek(0)
        self._file.write(header(self._dtype, self.num_tokens))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
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


def open_stream(path: str | os.PathLike, tokenizer: str | None = None) -> "TokenStream":
    """Opens a prepared folder and checks the size of every shard (checksums: `verify`).

    tokenizer: the name that the tokens must have been made with, if any is required.
    Raises WorldError on a missing or unreadable manifest, a missing, truncated or longer shard, another tokenizer.
    """
    folder = pathlib.Path(path)
    manifest = Manifest.load(folder)
    if tokenizer is not None and manifest.tokenizer != tokenizer:
        raise WorldError(
            f"{folder}: made with tokenizer.name={manifest.tokenizer}: accepted {tokenizer}, as this run's config says"
        )
    for shard in manifest.shards:
        check_size(folder, shard, manifest.dtype)
    return TokenStream(folder, manifest)


def check_size(folder: pathlib.Path, shard: Shard, dtype: str) -> None:
    expected = len(header(dtype, shard.num_tokens)) + shard.num_tokens * np.dtype(dtype).itemsize
    try:
        size = os.stat(folder / shard.name).st_size
    except OSError as error:
        raise WorldError(f"{folder / shard.name}: {error.strerror}, and the manifest lists it: {_REDO}") from error
    if size != expected:
        raise WorldError(f"{folder / shard.name}: {size} bytes, the manifest says {expected}: {_REDO}")


_REDO = "delete this folder and prepare the corpus again"


def verify(path: str | os.PathLike) -> Iterator[Shard]:
    """Reads every shard whole and compares header and checksum with the manifest; yields each that is right.

    Raises WorldError at the first one that is not.
    """
    folder = pathlib.Path(path)
    stream = open_stream(folder)
    for shard in stream.manifest.shards:
        expected = header(stream.manifest.dtype, shard.num_tokens)
        with open(folder / shard.name, "rb") as file:
            right = file.read(len(expected)) == expected
            digest = hashlib.sha256()
            while data := file.read(1 << 22):
                digest.update(data)
        if not right or digest.hexdigest() != shard.sha256:
            raise WorldError(
                f"{folder / shard.name}: altered since it was written "
                f"(sha256 {digest.hexdigest()[:16]}..., the manifest says {shard.sha256[:16]}...): {_REDO}"
            )
        yield shard


class TokenStream:
    """The tokens of a prepared folder, memory-mapped on first use, shard by shard."""

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest
        self.num_tokens = manifest.num_tokens
        self.dtype = np.dtype(manifest.dtype)
        self._ends = np.cumsum([shard.num_tokens for shard in manifest.shards], dtype=np.int64)
        self._maps: list[np.ndarray | None] = [None] * len(manifest.shards)

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def blocks(self, length: int) -> "Blocks":
        """The stream cut into blocks of `length` tokens. Raises WorldError when there is not one whole block."""
        return Blocks(self, length)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop): a view where one shard holds them all, else a copy."""
        index = int(np.searchsorted(self._ends, start, side="right"))
        begin = int(self._ends[index - 1]) if index else 0
        if stop <= self._ends[index]:
            return self._map(index)[start - begin : stop - begin]
        parts = []
        while start < stop:
            end = min(stop, int(self._ends[index]))
            parts.append(self._map(index)[start - begin : end - begin])
            start = begin = end
            index += 1
        return np.concatenate(parts)

    def _map(self, index: int) -> np.ndarray:
        tokens = self._maps[index]
        if tokens is None:
            shard = self.manifest.shards[index]
            with open(self.folder / shard.name, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):  # read-ahead would fetch 64 times what a shuffled block needs
                mapped.madvise(mmap.MADV_RANDOM)
            offset = len(header(self.manifest.dtype, shard.num_tokens))
            tokens = np.frombuffer(mapped, self.dtype, shard.num_tokens, offset)
            self._maps[index] = tokens
        return tokens


class Blocks(Sequence):
    """Random access to blocks of one length; each item is (length,) in the stream's dtype (uint16 or uint32)."""

    def __init__(self, stream: TokenStream, length: int):
        if length < 1:
            raise ValueError(f"length={length}: accepted a positive number of tokens")
        segments = np.asarray(stream.manifest.segments or (stream.num_tokens,), np.int64)
        self._stream, self.length = stream, length
        self._starts = np.cumsum(segments) - segments
        self._ends = np.cumsum(segments // length)
        if not self._ends[-1]:
            raise WorldError(
                f"{stream.folder}: {stream.num_tokens} tokens, not one block of model.length={length}: "
                "accepted a longer corpus or a smaller model.length"
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
