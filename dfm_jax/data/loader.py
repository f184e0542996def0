"""Batches from a token stream: a function of the step, whatever the number of processes.

Row r of the training stream is block order[r], where `order` runs through one permutation of all blocks per epoch,
drawn from (seed, epoch); global batch s holds rows [s B, (s + 1) B), across epoch ends, and process i of n takes its
i-th n-th. So a run resumes from its step alone, also on another number of processes, and no batch is ever short.
Row r of a mixture is the next block, in that corpus's own order, of the corpus that `views.proportions` names.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dfm_jax.data.shards import Blocks, TokenStream
from dfm_jax.data.views.mixture import Mixture
from dfm_jax.data.views.records import Records
from dfm_jax.runtime import logs
from dfm_jax.runtime.errors import UsageError, WorldError

with logs.of_the_program():  # grain imports orbax
    import grain


class Batch(NamedTuple):
    """Rows of a corpus, a pytree: numpy arrays of one process, then the global arrays of all."""

    tokens: Any  # (B, L) int32
    # (B, L) bool, or None for nowhere: positions that are kept as they are and carry no loss, such as a prompt.
    given: Any = None
    # (B, L) bool, or None for everywhere: positions that carry a loss. The others are noised as all are: padding.
    scored: Any = None
    # (B,) float32, or None for all that carry a loss: the tokens of each row that a figure per token is divided by. Of
    # a record these are its response and the end of text after it, without the padding.
    counted: Any = None


# Batches read ahead: enough to hide a slow disk; grain's defaults would hold 500.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def train_batches(
    stream: TokenStream | Mixture,
    *,
    length: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless batches from number `start_step` on, tokens (batch_size / process_count, length) int32 each, and, where
    the corpus or one of a mixture has records, what is given of them.

    batch_size: blocks of the global batch. Starting at any step costs the same. Raises UsageError when the
    processes do not divide the batch, WorldError when the corpus is shorter than one block.
    """
    rows = _local_rows(batch_size, process_index, process_count)
    batches = _TrainBatches(_endless(stream, length, batch_size, seed), batch_size, rows)
    return iter(grain.MapDataset.source(batches).slice(slice(start_step, None)).to_iter_dataset(_READ))


def eval_batches(
    stream: TokenStream,
    *,
    length: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    max_blocks: int = 0,
    evenly: bool = False,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Every block exactly once, in order: a batch of (batch_size / process_count, length) int32 tokens, of records also
    what is given and counted, and weights (batch_size / process_count,) float32.

    The rows that fill the last batch have weight 0 and tokens 0. All processes get the same number of batches.
    max_blocks: only the first blocks, or with `evenly` so many from all over the stream; 0 means all.
    """
    rows = _local_rows(batch_size, process_index, process_count)
    batches = _EvalBatches(stream.blocks(length), batch_size, rows, max_blocks, evenly)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(_READ))


def _local_rows(batch_size: int, process_index: int, process_count: int) -> range:
    if batch_size < 1 or batch_size % process_count:
        raise UsageError(
            f"batch_size = {batch_size}: expected a positive multiple of the number of processes, {process_count}"
        )
    local = batch_size // process_count
    return range(process_index * local, (process_index + 1) * local)


Place = tuple[Blocks | Records, int]  # a block


class _Shuffled:
    """The blocks of one corpus without end, each epoch in another order."""

    def __init__(self, blocks: Blocks | Records, seed: int):
        self.parts, self.length = [blocks], blocks.length
        if len(blocks) > 1 << 32:  # the permutation's limit, which grain does not check
            raise WorldError(f"{len(blocks)} blocks: expected at most 2^32; a larger model.length gives fewer")
        # An index-based permutation: no array of the corpus's size, and position r costs the same for every r.
        self._order: Any = grain.MapDataset.range(len(blocks)).seed(seed).shuffle().repeat()

    def place(self, position: int) -> Place:
        """Block number `position`, and the corpus that it is of."""
        return self.parts[0], int(self._order[position])


class _Mixed:
    """The blocks of several corpora without end."""

    def __init__(self, mixture: Mixture, length: int, batch_size: int, seed: int):
        self._order, self.length = mixture.order(batch_size, seed), length
        self._shuffled = [_Shuffled(stream.blocks(length), seed) for stream in mixture.streams]
        self.parts = [part for shuffled in self._shuffled for part in shuffled.parts]

    def place(self, position: int) -> Place:
        """Block number `position`, and the corpus that it is of."""
        corpus, index = self._order.place(position)
        return self._shuffled[corpus].place(index)


def _endless(stream: TokenStream | Mixture, length: int, batch_size: int, seed: int) -> _Shuffled | _Mixed:
    if isinstance(stream, Mixture):
        return _Mixed(stream, length, batch_size, seed)
    return _Shuffled(stream.blocks(length), seed)


def _given(places: Sequence[Place], length: int) -> np.ndarray:
    """(n, L) bool: the positions of some rows that are given, a beginning of each."""
    counts = [blocks.given(index) if isinstance(blocks, Records) else 0 for blocks, index in places]
    return np.arange(length) < np.array(counts)[:, None]


class _TrainBatches(Sequence):
    def __init__(self, rows: _Shuffled | _Mixed, batch_size: int, local: range):
        self._rows, self._batch_size, self._local = rows, batch_size, local
        self._given = any(isinstance(part, Records) for part in rows.parts)

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __getitem__(self, step) -> Batch:
        length = self._rows.length
        tokens = np.empty((len(self._local), length), np.int32)
        first = int(step) * self._batch_size
        places = [self._rows.place(first + row) for row in self._local]
        for i, (blocks, index) in enumerate(places):
            tokens[i] = blocks[index]
        return Batch(tokens, _given(places, length) if self._given else None, _scored(places, length))


def _scored(places: Sequence[Place | None], length: int) -> np.ndarray | None:
    """The scored positions of some rows, (n, L) bool; None where they have no padding. None is a row of no block."""
    if not any(place is not None and hasattr(place[0], "scored") for place in places):
        return None
    blocks: Any
    counts = [0 if place is None else length for place in places]
    for i, place in enumerate(places):
        if place is not None and hasattr(place[0], "scored"):
            blocks, index = place
            counts[i] = blocks.scored(index)
    return np.arange(length)[None] < np.array(counts)[:, None]


class _EvalBatches(Sequence):
    def __init__(self, blocks: Blocks | Records, batch_size: int, local: range, max_blocks: int, evenly: bool):
        self._blocks, self._batch_size, self._local, self._evenly = blocks, batch_size, local, evenly
        self._num_blocks = min(len(blocks), max_blocks or len(blocks))

    def __len__(self) -> int:
        return -(-self._num_blocks // self._batch_size)

    def __getitem__(self, step) -> tuple[Batch, np.ndarray]:
        blocks = self._blocks
        tokens = np.zeros((len(self._local), blocks.length), np.int32)
        given, counted = np.zeros(tokens.shape, bool), np.ones(len(tokens), np.float32)
        weights = np.zeros(len(tokens), np.float32)
        places: list[Place | None] = [None] * len(tokens)
        for i, row in enumerate(self._local):
            block = int(step) * self._batch_size + row
            if block < self._num_blocks:
                block = block * len(blocks) // self._num_blocks if self._evenly else block
                tokens[i], weights[i], places[i] = blocks[block], 1.0, (blocks, block)
                if isinstance(blocks, Records):
                    given[i, : blocks.given(block)], counted[i] = True, blocks.counted(block)
        if isinstance(blocks, Records):
            return Batch(tokens, given, counted=counted), weights
        return Batch(tokens, scored=_scored(places, blocks.length)), weights
