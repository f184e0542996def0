"""Batches from a token stream: a function of the step, whatever the number of processes.

Row r of the training stream is block order[r], where `order` runs through one permutation of all blocks per epoch,
drawn from (seed, epoch); global batch s holds rows [s B, (s + 1) B), across epoch ends, and process i of n takes its
i-th n-th. So a run resumes from its step alone, also on another number of processes, and no batch is ever short.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dfm_jax.data.shards import Blocks, TokenStream
from dfm_jax.runtime import logs
from dfm_jax.runtime.errors import UsageError, WorldError

with logs.of_the_program():  # grain imports orbax
    import grain


class Batch(NamedTuple):
    """Rows of a corpus, a pytree: numpy arrays of one process, then the global arrays of all."""

    tokens: Any  # (B, L) int32
    # (B, L) bool, or None for nowhere: positions that are kept as they are and carry no loss, such as a prompt.
    given: Any = None


# Batches read ahead: enough to hide a slow disk; grain's defaults would hold 500.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def train_batches(
    stream: TokenStream,
    *,
    length: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless batches from number `start_step` on, tokens (batch_size / process_count, length) int32 each.

    batch_size: blocks of the global batch. Starting at any step costs the same. Raises UsageError when the
    processes do not divide the batch, WorldError when the corpus is shorter than one block.
    """
    rows = _local_rows(batch_size, process_index, process_count)
    batches = _TrainBatches(stream.blocks(length), batch_size, rows, seed)
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
    """Every block exactly once, in order: a batch of (batch_size / process_count, length) int32 tokens, and weights
    (batch_size / process_count,) float32.

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


class _TrainBatches(Sequence):
    def __init__(self, blocks: Blocks, batch_size: int, rows: range, seed: int):
        self._blocks, self._batch_size, self._rows = blocks, batch_size, rows
        if len(blocks) > 1 << 32:  # the permutation's limit, which grain does not check
            raise WorldError(f"{len(blocks)} blocks: expected at most 2^32; a larger model.length gives fewer")
        # An index-based permutation: no array of the corpus's size, and position r costs the same for every r.
        self._order = grain.MapDataset.range(len(blocks)).seed(seed).shuffle().repeat()

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __getitem__(self, step) -> Batch:
        tokens = np.empty((len(self._rows), self._blocks.length), np.int32)
        first = int(step) * self._batch_size
        for i, row in enumerate(self._rows):
            tokens[i] = self._blocks[self._order[first + row]]
        return Batch(tokens)


class _EvalBatches(Sequence):
    def __init__(self, blocks: Blocks, batch_size: int, rows: range, max_blocks: int, evenly: bool):
        self._evenly = evenly
        self._blocks, self._batch_size, self._rows = blocks, batch_size, rows
        self._num_blocks = min(len(blocks), max_blocks or len(blocks))

    def __len__(self) -> int:
        return -(-self._num_blocks // self._batch_size)

    def __getitem__(self, step) -> tuple[Batch, np.ndarray]:
        tokens = np.zeros((len(self._rows), self._blocks.length), np.int32)
        weights = np.zeros(len(self._rows), np.float32)
        for i, row in enumerate(self._rows):
            block = int(step) * self._batch_size + row
            if block < self._num_blocks:
                place = block * len(self._blocks) // self._num_blocks if self._evenly else block
                tokens[i], weights[i] = self._blocks[place], 1.0
        return Batch(tokens), weights
