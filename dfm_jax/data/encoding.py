"""Rows to tokens on several threads, in order, in constant memory.

Threads are enough: tiktoken encodes without Python's lock, and one process needs neither copies of the text nor
start-up time.
"""

import collections
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from dfm_jax.data.rows import Row
from dfm_jax.data.tokenizers import Tokenizer

_BATCH_CHARS = 1 << 18
_BATCH_ROWS = 512

DOCUMENTS, BYTES, REPAIRED, SKIPPED = range(4)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Some whole rows. tokens: of all of them, EOS included. ends (rows,): where each row ends in tokens. counts
    (rows + 1, 4): documents ended, bytes of text, documents repaired, rows skipped before each row and in all.
    """

    tokens: np.ndarray
    ends: np.ndarray
    counts: np.ndarray

    def place(self, stop: int) -> tuple[int, int]:
        """Rows that lie in the first `stop` tokens as a whole, and how many tokens of the next one do."""
        rows = int(np.searchsorted(self.ends, stop, side="right"))
        return rows, stop - (int(self.ends[rows - 1]) if rows else 0)


class Encoder:
    """encoder(rows) yields the rows' tokens, batch after batch, in order."""

    def __init__(
        self, tokenizer: Tokenizer, detokenize: Callable[[str], str] | None, keep_empty: bool, num_workers: int
    ):
        """num_workers: threads; 0 for one per core that this process may use."""
        self.tokenizer, self._detokenize, self._keep_empty = tokenizer, detokenize, keep_empty
        self._workers = num_workers or num_cores()
        self.dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"  # of the shards

    def __call__(self, rows: Iterable[Row | None]) -> Generator[Encoded, None, None]:
        pending: collections.deque[Future[Encoded]] = collections.deque()
        with ThreadPoolExecutor(self._workers, "encode") as pool:
            try:
                for batch in _batches(rows):
                    pending.append(pool.submit(self._encode, batch))
                    if len(pending) > 2 * self._workers:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _encode(self, rows: list[Row | None]) -> Encoded:
        counts = np.zeros((len(rows) + 1, 4), np.int64)
        texts, owners = [], []
        for i, row in enumerate(rows):
            if row is None or not (row.text or self._keep_empty):
                counts[i + 1, SKIPPED] = 1
                continue
            texts.append(self._detokenize(row.text) if self._detokenize else row.text)
            owners.append(i)
        parts, sizes = [], np.zeros(len(rows), np.int64)
        has_eos = self.tokenizer.eos_id >= 0
        eos = np.full(int(has_eos), max(self.tokenizer.eos_id, 0), self.dtype)
        for i, text, ids in zip(owners, texts, self.tokenizer.encode_batch(texts), strict=True):
            row = rows[i]
            assert row is not None
            parts.append(ids.astype(self.dtype, copy=False))
            if row.end:
                parts.append(eos)
            sizes[i] = len(ids) + (row.end and has_eos)
            counts[i + 1, :SKIPPED] = row.end, _num_bytes(text), row.repaired
        tokens = np.concatenate(parts) if parts else np.zeros(0, self.dtype)
        return Encoded(tokens, np.cumsum(sizes), np.cumsum(counts, axis=0))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _batches(rows: Iterable[Row | None]) -> Iterator[list[Row | None]]:
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += len(row.text) if row else 0
        if size >= _BATCH_CHARS or len(batch) >= _BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
