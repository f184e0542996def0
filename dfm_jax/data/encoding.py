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

from dfm_jax.data.rows import Fault, Item, Row
from dfm_jax.data.tokenizers import CHARACTERS, Tokenizer
from dfm_jax.runtime.errors import WorldError

_BATCH_CHARS = 1 << 18
_BATCH_ROWS = 512

# What is counted: rows of the source, tokens with EOS, documents ended, bytes of text, documents repaired, rows without
# text, rows that were bad, files of which the rest was lost.
ROWS, TOKENS, DOCUMENTS, BYTES, REPAIRED, SKIPPED, BAD, LOST = range(8)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Some whole rows.

    tokens: of all of them, EOS included. parts (rows,): the number of the part that each is of. totals (rows + 1, 8):
    what was counted before each row, and in all. faults: (row, where and what) of the bad ones.
    """

    tokens: np.ndarray
    parts: np.ndarray
    totals: np.ndarray
    faults: tuple[tuple[int, str], ...]

    def place(self, stop: int) -> tuple[int, int]:
        """Rows that lie in the first `stop` tokens as a whole, and how many tokens of the next one do."""
        ends = self.totals[:, TOKENS]
        rows = int(np.searchsorted(ends[1:], stop, side="right"))
        return rows, stop - int(ends[rows])


class Encoder:
    """encoder(items) yields the tokens of numbered rows (see Unit.items), batch after batch, in order."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        detokenize: Callable[[str], str] | None,
        keep_empty: bool,
        num_workers: int,
        records: bool = False,
        special: str = "text",
    ):
        """num_workers: threads; 0 for one per core that this process may use. records: the rows are records, whose
        tokens have marks between them (see views/records.py). special: how the tokenizer takes special tokens in a
        text, 'text' or 'parse'.
        """
        self.tokenizer, self._detokenize, self._keep_empty = tokenizer, detokenize, keep_empty
        self._workers = num_workers or num_cores()
        self.records, self.special = records, special
        self.key = tokenizer.name + (" parse" if special == "parse" else "")  # of the tokens of a text
        self.dtype = "<u2" if tokenizer.vocab_size + 2 * records <= 1 << 16 else "<u4"  # of the shards

    def __call__(self, items: Iterable[tuple[int, Item]]) -> Generator[Encoded, None, None]:
        pending: collections.deque[Future[Encoded]] = collections.deque()
        with ThreadPoolExecutor(self._workers, "encode") as pool:
            try:
                for batch in _batches(items):
                    pending.append(pool.submit(self._encode, batch))
                    if len(pending) > 2 * self._workers:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _encode(self, items: list[tuple[int, Item]]) -> Encoded:
        counts = np.zeros((len(items) + 1, 8), np.int64)
        counts[1:, ROWS] = 1
        texts, owners, faults = [], [], []
        for i, (_, row) in enumerate(items):
            if isinstance(row, Fault):
                counts[i + 1, LOST if row.file else BAD] = 1
                faults.append((i, str(row.error)))
            elif row is not None and self.records:
                texts += _space_moved(row, self.tokenizer)
                owners += [i, i]
            elif row is None or not (row.text or self._keep_empty):
                counts[i + 1, SKIPPED] = 1
            else:
                texts.append(self._detokenize(row.text) if self._detokenize else row.text)
                owners.append(i)
        parts = []
        has_eos = self.tokenizer.eos_id >= 0
        eos = np.full(int(has_eos), max(self.tokenizer.eos_id, 0), self.dtype)
        end_of_prompt = np.full(1, self.tokenizer.vocab_size, self.dtype) if self.records else eos
        end_of_record = end_of_prompt + end_of_prompt.dtype.type(1)
        before = -1
        for i, text, ids in zip(owners, texts, self.tokenizer.encode_batch(texts), strict=True):
            row = items[i][1]
            assert isinstance(row, Row)
            parts.append(ids.astype(self.dtype, copy=False))
            if self.records:
                ends = i == before  # the response, which comes after its prompt
                parts += [eos, end_of_record] if ends else [end_of_prompt]
                counts[i + 1, TOKENS : REPAIRED + 1] += len(ids) + 1 + ends, ends, _num_bytes(text), ends & row.repaired
                before = i
                continue
            if row.end:
                parts.append(eos)
            tokens = len(ids) + (row.end and has_eos)
            counts[i + 1, TOKENS : REPAIRED + 1] = tokens, row.end, _num_bytes(text), row.repaired
        tokens = np.concatenate(parts) if parts else np.zeros(0, self.dtype)
        of_parts = np.array([part for part, _ in items], np.int64)
        return Encoded(tokens, of_parts, np.cumsum(counts, axis=0), tuple(faults))


def _space_moved(record: Row, tokenizer: Tokenizer) -> tuple[str, str]:
    """Prompt and response, the space between them given to the response: GPT-2's tokens begin with it.

    A prompt that is typed for a sample loses its last space in the same way (evaluation/prompts.py).
    """
    if record.response is None:
        raise WorldError(f"{record.text[:50]!r}: text among records: expected a prompt with its response")
    if tokenizer.name in CHARACTERS or not record.text.endswith(" "):
        return record.text, record.response
    return record.text[:-1], " " + record.response


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _batches(items: Iterable[tuple[int, Item]]) -> Iterator[list[tuple[int, Item]]]:
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += len(item[1].text) + len(item[1].response or "") if isinstance(item[1], Row) else 0
        if size >= _BATCH_CHARS or len(batch) >= _BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
