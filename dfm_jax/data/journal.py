"""Writes one unit's shards so that a killed run goes on where its last finished shard ends."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dfm_jax.data import encoding
from dfm_jax.data.encoding import Encoded, Encoder
from dfm_jax.data.progress import Meter
from dfm_jax.data.rows import Fault, Item, Unit
from dfm_jax.data.shards import Shard, ShardFiles, ShardWriter, check_size
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.files import write_atomically
from dfm_jax.runtime.lock import waiting

PLACES = 10  # faults that are named
_CHUNK = 1 << 20  # tokens


@dataclasses.dataclass(frozen=True)
class Place:
    """The tokens [start, start + counts[TOKENS]) of some shards, and what was counted in their part."""

    shards: ShardFiles
    start: int
    counts: tuple[int, ...]

    def read(self, offset: int) -> Iterator[np.ndarray]:
        """The tokens from number `offset` on, in chunks. Raises WorldError where they are damaged."""
        stop = self.start + self.counts[encoding.TOKENS]
        for first in range(self.start + offset, stop, _CHUNK):
            yield self.shards.read(first, min(first + _CHUNK, stop))


class PartRecord(NamedTuple):
    """A finished part: the key of its tokens ('' where it is not known), and what was counted in it."""

    key: str
    counts: tuple[int, ...]  # see encoding.ROWS and the following


@dataclasses.dataclass(frozen=True)
class Journal:
    """How far a unit is: `rows` rows, and `offset` tokens of the next one, are in `shards`."""

    rows: int = 0
    offset: int = 0
    documents: int = 0
    num_bytes: int = 0
    repaired: int = 0
    skipped: int = 0
    bad: int = 0  # rows that were left out because they could not be read
    lost: int = 0  # files that could not be read to their end
    places: tuple[str, ...] = ()  # the first of them
    shards: tuple[Shard, ...] = ()
    lengths: tuple[int, ...] = ()  # tokens of each row that has any, kept for the reference's packing only
    parts: tuple[PartRecord, ...] = ()  # those that are finished
    done: bool = False

    @staticmethod
    def load(folder: pathlib.Path, index: int) -> "Journal":
        """That of unit number `index`; an empty one if it has not been begun."""
        try:
            return Journal.read(_path(folder, index))
        except FileNotFoundError:
            return Journal()

    @staticmethod
    def read(path: pathlib.Path) -> "Journal":
        """Raises WorldError where the file is damaged."""
        text = path.read_text(encoding="utf-8")
        try:
            fields = json.loads(text)
            fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
            fields["parts"] = tuple(PartRecord(key, tuple(counts)) for key, counts in fields.get("parts", ()))
            for name in ("lengths", "places"):
                fields[name] = tuple(fields.get(name, ()))
            return Journal(**fields)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise WorldError(f"{path}: not a journal of this program ({error}): delete {path.parent}") from error

    def save(self, folder: pathlib.Path, index: int) -> None:
        fields = {**dataclasses.asdict(self), "parts": [list(part) for part in self.parts]}
        write_atomically(_path(folder, index), json.dumps(fields) + "\n", durable=True)


def _path(folder: pathlib.Path, index: int) -> pathlib.Path:
    return folder / f"unit-{index:05d}.json"


def key_of_tokens(part: str, tokenizer: str) -> str:
    """The key of a part's tokens: the same key, the same tokens; '' where the part has none."""
    return hashlib.sha256(f"{part} {tokenizer}".encode()).hexdigest()[:32] if part else ""


class _State:
    """What has been counted, as arrays and lists that grow; `Journal` is its form on the disk."""

    def __init__(self, journal: Journal, keys: Sequence[str], keep_lengths: bool):
        written = sum(shard.num_tokens for shard in journal.shards)
        self.counts = np.array([
            journal.rows, written - journal.offset, journal.documents, journal.num_bytes,
            journal.repaired, journal.skipped, journal.bad, journal.lost,
        ], np.int64)  # fmt: skip
        self.offset = journal.offset
        self.parts, self.places, self.lengths = list(journal.parts), list(journal.places), list(journal.lengths)
        self.recorded = np.sum([part.counts for part in self.parts], axis=0, dtype=np.int64) + np.zeros(8, np.int64)
        self._keys, self._keep_lengths = keys, keep_lengths

    def rows_of_part(self) -> int:
        """Rows done of the first part that is not finished."""
        return int(self.counts[encoding.ROWS] - self.recorded[encoding.ROWS])

    def at(self, batch: Encoded, stop: int) -> "_State":
        """The state when the first `stop` tokens of the batch that follows are written."""
        state = object.__new__(_State)
        state.__dict__ = {k: v.copy() if isinstance(v, list | np.ndarray) else v for k, v in self.__dict__.items()}
        state.advance(batch, stop)
        return state

    def advance(self, batch: Encoded, stop: int) -> None:
        rows, self.offset = batch.place(stop)
        before = self.counts
        for row in np.flatnonzero(np.diff(batch.parts[:rows], prepend=len(self.parts))):
            self.finish_parts(int(batch.parts[row]), before + batch.totals[row])
        self.counts = before + batch.totals[rows]
        self.places += [place for row, place in batch.faults if row < rows][: PLACES - len(self.places)]
        if self._keep_lengths:
            sizes = np.diff(batch.totals[: rows + 1, encoding.TOKENS])
            self.lengths += sizes[sizes > 0].tolist()

    def finish_parts(self, stop: int, counts: np.ndarray) -> None:
        """The parts before number `stop` are finished, with `counts` in all."""
        while len(self.parts) < stop:
            own = counts - self.recorded
            whole = not own[encoding.BAD] and not own[encoding.LOST]
            self.parts.append(PartRecord(self._keys[len(self.parts)] if whole else "", tuple(own.tolist())))
            self.recorded = counts

    def journal(self, shards: Sequence[Shard], done: bool = False) -> Journal:
        counts = self.counts.tolist()
        return Journal(
            rows=counts[encoding.ROWS],
            offset=self.offset,
            documents=counts[encoding.DOCUMENTS],
            num_bytes=counts[encoding.BYTES],
            repaired=counts[encoding.REPAIRED],
            skipped=counts[encoding.SKIPPED],
            bad=counts[encoding.BAD],
            lost=counts[encoding.LOST],
            places=tuple(self.places),
            shards=tuple(shards),
            lengths=tuple(self.lengths),
            parts=tuple(self.parts),
            done=done,
        )


class _Tape:
    """The tokens of a unit on their way to shards of one size."""

    def __init__(self, folder: pathlib.Path, index: int, dtype: str, capacity: int, shards: Sequence[Shard]):
        self._folder, self._index, self._dtype, self._capacity = folder, index, dtype, capacity
        self._shards = list(shards)
        self._writer = self._open()

    def _open(self) -> ShardWriter:
        return ShardWriter(self._folder, f"unit-{self._index:05d}-{len(self._shards):04d}.npy", self._dtype)

    def write(self, tokens: np.ndarray, state: Callable[[int], _State]) -> None:
        """state(n): what is to be kept when a shard ends after the first n of these tokens."""
        start = 0
        while len(tokens) - start >= (room := self._capacity - self._writer.num_tokens):
            self._writer.write(tokens[start : start + room])
            start += room
            self._shards.append(self._writer.close())
            state(start).journal(self._shards).save(self._folder, self._index)
            self._writer = self._open()
        self._writer.write(tokens[start:])

    def finish(self, state: _State) -> None:
        if self._writer.num_tokens:
            self._shards.append(self._writer.close())
        state.journal(self._shards, done=True).save(self._folder, self._index)

    def abort(self) -> None:
        """Removes a shard that is not finished."""
        self._writer.abort()


class UnitWriter:
    """Encodes units and writes them to a folder, each to its own shards."""

    def __init__(
        self,
        folder: pathlib.Path,
        encoder: Encoder,
        shard_bytes: int,
        *,
        keep_lengths: bool,
        skip_faults: bool = False,
        known: Callable[[Sequence[str]], dict[str, Place]] | None = None,
    ):
        """skip_faults: leave out what cannot be read, instead of stopping. known: finds tokens made before, by key."""
        self._folder, self._encoder, self._keep_lengths = folder, encoder, keep_lengths
        self._skip_faults, self._known = skip_faults, known
        self._capacity = shard_bytes // np.dtype(encoder.dtype).itemsize

    def write(self, index: int, unit: Unit, meter: Meter) -> None:
        """Does what is left of unit number `index`; waits while another process is at it."""
        with waiting(self._folder / f".unit-{index:05d}.lock"):
            journal = Journal.load(self._folder, index)
            for shard in journal.shards:
                check_size(self._folder, shard, self._encoder.dtype)
            if journal.done:
                meter.skip(unit)
                return
            keys = [key_of_tokens(part.key, self._encoder.key) for part in unit.parts]
            state = _State(journal, keys, self._keep_lengths)
            tape = _Tape(self._folder, index, self._encoder.dtype, self._capacity, journal.shards)
            try:
                self._write(unit, keys, state, tape, meter)
                tape.finish(state)
            finally:
                tape.abort()
        meter.finish(unit)

    def _write(self, unit: Unit, keys: Sequence[str], state: _State, tape: _Tape, meter: Meter) -> None:
        # Lengths of rows, which the reference's packing needs, are not kept for each part.
        known = self._known(keys) if self._known and not self._keep_lengths else {}
        while (first := len(state.parts)) < len(keys):
            found = known.get(keys[first])
            if found and not state.rows_of_part():
                if _copy(found, state, tape):
                    unit.begin(first + 1)
                    meter.add(unit, found.counts[encoding.DOCUMENTS], found.counts[encoding.TOKENS])
                    continue
                del known[keys[first]]
            stop = next((i for i in range(first + 1, len(keys)) if keys[i] in known), len(keys))
            self._encode(unit, first, stop, state, tape, meter)

    def _encode(self, unit: Unit, first: int, stop: int, state: _State, tape: _Tape, meter: Meter) -> None:
        """Reads and encodes the parts first .. stop - 1, from where the state is."""
        drop = state.offset  # tokens of the next rows that are written already
        resumed = bool(drop or state.rows_of_part())
        encoded = self._encoder(self._items(unit, first, stop, state.rows_of_part()))
        try:
            for batch in encoded:
                if resumed:
                    meter.resume(unit)
                    resumed = False
                start = min(drop, len(batch.tokens))
                tape.write(batch.tokens[start:], lambda n, batch=batch, start=start: state.at(batch, start + n))
                state.advance(batch, len(batch.tokens))
                meter.add(unit, int(batch.totals[-1, encoding.DOCUMENTS]), len(batch.tokens) - start)
                drop -= start
        finally:
            encoded.close()
        state.finish_parts(stop, state.counts)

    def _items(self, unit: Unit, first: int, stop: int, skip: int) -> Iterator[tuple[int, Item]]:
        for part, item in unit.items(first, stop, skip, self._encoder.tokenizer.cut):
            if isinstance(item, Fault) and not self._skip_faults:
                raise item.error
            yield part, item


def _copy(found: Place, state: _State, tape: _Tape) -> bool:
    """Writes the tokens of a part that were made before; False where they turn out to be damaged or gone."""
    try:
        for tokens in found.read(state.offset):
            tape.write(tokens, lambda n: _with_offset(state, state.offset + n))
            state.offset += len(tokens)
    except WorldError:
        return False
    state.counts = state.counts + np.array(found.counts, np.int64)
    state.offset = 0
    state.finish_parts(len(state.parts) + 1, state.counts)
    return True


def _with_offset(state: _State, offset: int) -> _State:
    other = object.__new__(_State)
    other.__dict__ = {**state.__dict__, "offset": offset}
    return other
