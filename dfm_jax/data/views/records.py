"""Prepared records as rows: prompt, response, end of text, padded with ends of text.

In the shards a record is its prompt, the mark `vocab_size`, its response with an end of text, and the mark
`vocab_size + 1`. The places of all marks, two a record, are shards of their own (`Manifest.records`), so that record i
is found without reading the others. The length of a row is a view, as that of a block is: what is too long for it is
cut or left out when the rows are read.
"""

import bisect
import pathlib
import sys
from collections.abc import Callable, Sequence

import numpy as np

from dfm_jax.data.manifest import Manifest, Shard
from dfm_jax.data.shards import ShardFiles, ShardWriter, TokenStream
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.lock import waiting

LONG = ("cut", "skip")
INDEX = "records-0000.npy"
INDEX_DTYPE = "<u8"
_CHUNK = 1 << 20  # tokens read at a time
_GROUP = 1 << 12  # records that are counted together


def write_index(folder: pathlib.Path, shards: Sequence[Shard], dtype: str, vocab_size: int) -> tuple[Shard, ...]:
    """Writes the places of all marks in the shards, in constant memory."""
    files, total = ShardFiles(folder, shards, dtype), sum(shard.num_tokens for shard in shards)
    with waiting(folder / ".records.lock"):
        writer = ShardWriter(folder, INDEX, INDEX_DTYPE)
        try:
            for start in range(0, total, _CHUNK):
                tokens = files.read(start, min(start + _CHUNK, total))
                writer.write(np.flatnonzero(tokens >= vocab_size).astype(INDEX_DTYPE) + np.uint64(start))
            return (writer.close(),)
        finally:
            writer.abort()


class RecordStream(TokenStream):
    """The records of a prepared folder."""

    def __init__(
        self,
        folder: pathlib.Path,
        manifest: Manifest,
        fetch: Callable[[str], None] | None = None,
        long: str = "cut",
    ):
        """long: what happens to a record that is longer than a row, one of LONG."""
        super().__init__(folder, manifest, fetch)
        self.long = long
        self.num_records = manifest.num_documents
        self._places = ShardFiles(folder, manifest.records, INDEX_DTYPE, fetch)
        self._rows: dict[int, Records] = {}

    def num_blocks(self, length: int) -> int:
        """Rows of `length` tokens: the records that are not left out."""
        return len(self.blocks(length))

    def blocks(self, length: int) -> "Records":
        """The records as rows of `length` tokens. Raises WorldError where not one fits, or as `long` says."""
        if length not in self._rows:
            self._rows[length] = Records(self, length)
        return self._rows[length]

    def marks(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of records first .. stop - 1: where they start, where their prompt ends and where they end, (n,) int64."""
        places = self._places.read(max(2 * first - 1, 0), 2 * stop).astype(np.int64)
        before = places[:1] if first else np.full(1, -1)
        own = places[1 if first else 0 :].reshape(-1, 2)
        starts = np.concatenate([before, own[:-1, 1]]) + 1
        return starts, own[:, 0], own[:, 1]

    def mark(self, record: int) -> tuple[int, int, int]:
        """Of one record: where it starts, where its prompt ends and where it ends."""
        places = self._places.read(max(2 * record - 1, 0), 2 * record + 2).tolist()
        before = places[0] if record else -1
        return before + 1, places[-2], places[-1]

    def name_of(self, record: int) -> str:
        """'record 17 of FILE', counted from 1."""
        for name, count in self.manifest.parts:
            if record < count:
                return f"{name}: record {record + 1}"
            record -= count
        return f"record {record + 1}"


class Records(Sequence):
    """Random access to records as rows of one length; each item is (length,) in the stream's dtype."""

    def __init__(self, stream: RecordStream, length: int):
        if length < 1:
            raise ValueError(f"length = {length}: expected a positive number of tokens")
        self._stream, self.length = stream, length
        self.num_long = 0  # records longer than a row
        self._last = sys.maxsize, (0, 0, 0)  # a row, and its place
        self._ends: list[int] = []  # rows up to the end of each group of records
        rows = 0
        for first in range(0, stream.num_records, _GROUP):
            stop = min(first + _GROUP, stream.num_records)
            starts, prompts, ends = stream.marks(first, stop)
            fits = ends - starts - 1 <= length  # without the mark in it
            self.num_long += int((~fits).sum())
            if stream.long == "cut":
                full = np.flatnonzero(prompts - starts >= length)
                if len(full):
                    at = int(full[0])
                    raise WorldError(
                        f"{stream.manifest.corpus}: {stream.name_of(first + at)}: its prompt has "
                        f"{int(prompts[at] - starts[at]):,} tokens, and a row has model.length = {length}: expected "
                        "a larger model.length, or data.long_records = skip"
                    )
                fits[:] = True
            rows += int(fits.sum())
            self._ends.append(rows)
        if not rows:
            raise WorldError(
                f"{stream.manifest.corpus}: not one of its {stream.num_records:,} records fits into a row of "
                f"model.length = {length}: expected shorter records or a larger model.length"
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index) -> np.ndarray:
        start, prompt, end = self._place(index)
        stored = self._stream.read(start, min(end, start + self.length + 1))
        row = np.full(self.length, self._stream.manifest.eos_id, stored.dtype)
        row[:prompt] = stored[:prompt]
        row[prompt : len(stored) - 1] = stored[prompt + 1 :]
        return row

    def given(self, index: int) -> int:
        """How many tokens of row `index` are its prompt."""
        return self._place(index)[1]

    def counted(self, index: int) -> int:
        """How many tokens of row `index` are its response and the end of text after it: not prompt, not padding."""
        start, prompt, end = self._place(index)
        return min(end - start - 1, self.length) - prompt

    def _place(self, index: int) -> tuple[int, int, int]:
        """Of row `index`: where it starts, how many tokens its prompt has, where it ends (with the mark within)."""
        known, place = self._last  # a row's tokens and its numbers are asked for one after the other
        if known == index:
            return place
        if not 0 <= index < len(self):
            raise IndexError(index)
        stream, record = self._stream, int(index)
        if stream.long == "skip":
            group = bisect.bisect_right(self._ends, record)
            first = group * _GROUP
            starts, _, ends = stream.marks(first, min(first + _GROUP, stream.num_records))
            fits = np.flatnonzero(ends - starts - 1 <= self.length)
            record = first + int(fits[record - (self._ends[group - 1] if group else 0)])
        start, prompt_end, end = stream.mark(record)
        place = start, prompt_end - start, end
        self._last = int(index), place
        return place

    def described(self) -> str:
        """What a reader of the log should know of records that are too long; '' where there are none."""
        if not self.num_long:
            return ""
        what = "cut at the end of the row" if self._stream.long == "cut" else "left out"
        total = self._stream.num_records
        return f"{self.num_long:,} of {total:,} records are longer than model.length = {self.length} and {what}"
