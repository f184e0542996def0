"""Several prepared corpora as one to train on, each with its share of the blocks."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from fractions import Fraction

from dfm_jax.data.shards import TokenStream
from dfm_jax.data.views.proportions import Order


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Corpora that are read in proportion to weights.

    names: as they were written. weights: from the first step on. changes: (step, weights) from later steps on.
    """

    names: tuple[str, ...]
    streams: tuple[TokenStream, ...]
    weights: tuple[Fraction, ...]
    changes: tuple[tuple[int, tuple[Fraction, ...]], ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(stream.num_tokens for stream in self.streams)

    @property
    def fingerprint(self) -> str:
        """Identifies the tokens of all corpora, in their order: 16 hex digits."""
        content = json.dumps([stream.fingerprint for stream in self.streams])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def num_blocks(self, length: int) -> int:
        """Blocks of `length` tokens of all corpora."""
        return sum(stream.num_blocks(length) for stream in self.streams)

    def order(self, batch_size: int, seed: int) -> Order:
        """Which corpus gives each block of batches of `batch_size`."""
        return _order(self.weights, self.changes, batch_size, seed)

    def epochs(self, step: int, *, length: int, batch_size: int, seed: int) -> list[float]:
        """How often each corpus has been read after `step` updates."""
        counts = self.order(batch_size, seed).counts(step * batch_size)
        return [count / stream.num_blocks(length) for count, stream in zip(counts, self.streams, strict=True)]


@functools.lru_cache(8)
def _order(
    weights: tuple[Fraction, ...], changes: tuple[tuple[int, tuple[Fraction, ...]], ...], batch_size: int, seed: int
) -> Order:
    history: Sequence[tuple[int, Sequence[Fraction]]] = [(0, weights), *((s * batch_size, w) for s, w in changes)]
    return Order(history, seed)
