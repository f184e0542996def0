"""Writes one unit's shards so that a killed run goes on where its last finished shard ends."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from dfm_jax.data.encoding import BYTES, DOCUMENTS, REPAIRED, SKIPPED, Encoded, Encoder
from dfm_jax.data.progress import Meter
from dfm_jax.data.rows import Unit
from dfm_jax.data.shards import Shard, ShardWriter, check_size
from dfm_jax.files import write_json_atomically


@dataclasses.dataclass(frozen=True)
class Journal:
    """How far a unit is: `rows` rows, and `offset` tokens of the next one, are in `shards`."""

    rows: int = 0
    offset: int = 0
    documents: int = 0
    num_bytes: int = 0
    repaired: int = 0
    skipped: int = 0
    shards: tuple[Shard, ...] = ()
    lengths: tuple[int, ...] = ()  # tokens of each row that has any, kept for the reference's packing only
    done: bool = False

    @staticmethod
    def load(folder: pathlib.Path, index: int) -> "Journal":
        """That of unit number `index`; an empty one if it has not been begun."""
        try:
            fields = json.loads(_path(folder, index).read_text())
        except FileNotFoundError:
            return Journal()
        fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
        fields["lengths"] = tuple(fields["lengths"])
        return Journal(**fields)

    def save(self, folder: pathlib.Path, index: int) -> None:
        write_json_atomically(_path(folder, index), dataclasses.asdict(self), durable=True)


def _path(folder: pathlib.Path, index: int) -> pathlib.Path:
    return folder / f"unit-{index:05d}.json"


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some cluster file systems have no locks: there, one run at a time
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield


class UnitWriter:
    """Encodes units and writes them to a folder, each to its own shards."""

    def __init__(self, folder: pathlib.Path, encoder: Encoder, shard_bytes: int, *, keep_lengths: bool):
        self._folder, self._encoder, self._keep_lengths = folder, encoder, keep_lengths
        self._capacity = shard_bytes // np.dtype(encoder.dtype).itemsize

    def write(self, index: int, unit: Unit, meter: Meter) -> None:
        """Does what is left of unit number `index`; waits while another process is at it."""
        with _locked(self._folder / f".unit-{index:05d}.lock"):
            self._write(index, unit, meter)

    def _write(self, index: int, unit: Unit, meter: Meter) -> None:
        journal = Journal.load(self._folder, index)
        for shard in journal.shards:
            check_size(self._folder, shard, self._encoder.dtype)
        if journal.done:
            meter.skip(unit)
            return
        shards, total = list(journal.shards), journal
        drop = journal.offset  # tokens of the first row that the last finished shard has
        writer = self._open(index, len(shards))
        encoded = self._encoder(unit.rows(journal.rows))
        try:
            for batch in encoded:
                if journal.rows and total is journal:
                    meter.resume(unit)
                start = drop
                while len(batch.tokens) - start >= (room := self._capacity - writer.num_tokens):
                    writer.write(batch.tokens[start : start + room])
                    start += room
                    shards.append(writer.close())
                    self._advance(total, batch, start, shards).save(self._folder, index)
                    writer = self._open(index, len(shards))
                writer.write(batch.tokens[start:])
                total = self._advance(total, batch, len(batch.tokens), shards)
                meter.add(unit, int(batch.counts[-1, DOCUMENTS]), len(batch.tokens) - drop)
                drop = 0
            if writer.num_tokens:
                shards.append(writer.close())
            dataclasses.replace(total, shards=tuple(shards), done=True).save(self._folder, index)
        finally:
            encoded.close()
            writer.abort()
        meter.finish(unit)

    def _open(self, index: int, number: int) -> ShardWriter:
        return ShardWriter(self._folder, f"unit-{index:05d}-{number:04d}.npy", self._encoder.dtype)

    def _advance(self, before: Journal, batch: Encoded, stop: int, shards: list[Shard]) -> Journal:
        """The journal when the batch that follows `before` has been written up to token `stop`."""
        rows, offset = batch.place(stop)
        counts = batch.counts[rows]
        lengths = before.lengths
        if self._keep_lengths:
            sizes = np.diff(batch.ends[:rows], prepend=0)
            lengths += tuple(sizes[sizes > 0].tolist())
        return Journal(
            rows=before.rows + rows,
            offset=offset,
            documents=before.documents + int(counts[DOCUMENTS]),
            num_bytes=before.num_bytes + int(counts[BYTES]),
            repaired=before.repaired + int(counts[REPAIRED]),
            skipped=before.skipped + int(counts[SKIPPED]),
            shards=tuple(shards),
            lengths=lengths,
        )
