"""In which order the corpora of a mixture give their blocks: exactly in proportion, at every point of a run.

After any number n of blocks, a corpus with the share w of the weights has given n w blocks, to within one. The order is
periodic. A period is made once, by the rule of Tijdeman ("The chairman assignment problem", 1980): of the corpora that
are due, the one whose deadline comes first is next. So the place of block n in its corpus costs the same for every n.
"""

import bisect
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

LONGEST = 100_000  # blocks of a period; finer weights are rounded to it


class Proportions:
    """The endless order of some weights.

    shares (K,): blocks of each corpus in a period. corpus (D,): which corpus gives each block of a period. rank (D,):
    how many blocks that corpus has given before, in the period.
    """

    def __init__(self, weights: Sequence[Fraction], seed: int):
        """weights: of 0 or more, at least one above 0. seed: of the order."""
        self.shares = shares_of(weights)
        self.corpus = _order(self.shares, seed)
        self.rank = np.zeros(len(self.corpus), np.int64)
        for k, share in enumerate(self.shares):
            self.rank[self.corpus == k] = np.arange(share)

    def place(self, position: int) -> tuple[int, int]:
        """(corpus, number of its blocks before) of block `position`."""
        periods, rest = divmod(position, len(self.corpus))
        corpus = int(self.corpus[rest])
        return corpus, periods * self.shares[corpus] + int(self.rank[rest])

    def counts(self, position: int) -> list[int]:
        """(K,): blocks of each corpus among the first `position`."""
        periods, rest = divmod(position, len(self.corpus))
        part = np.bincount(self.corpus[:rest], minlength=len(self.shares))
        return [periods * share + int(more) for share, more in zip(self.shares, part, strict=True)]


class Order:
    """The order of a run whose weights change at some of its blocks."""

    def __init__(self, changes: Sequence[tuple[int, Sequence[Fraction]]], seed: int):
        """changes: (first block, weights), the first from block 0 on."""
        self._starts = [start for start, _ in changes]
        self._parts = [Proportions(weights, seed) for _, weights in changes]
        self._before = [[0] * len(changes[0][1])]
        for (start, _), (stop, _), part in zip(changes, changes[1:], self._parts, strict=False):
            self._before.append([a + b for a, b in zip(self._before[-1], part.counts(stop - start), strict=True)])

    def place(self, position: int) -> tuple[int, int]:
        """(corpus, number of its blocks before) of block `position`."""
        i = bisect.bisect_right(self._starts, position) - 1
        corpus, index = self._parts[i].place(position - self._starts[i])
        return corpus, self._before[i][corpus] + index

    def counts(self, position: int) -> list[int]:
        """(K,): blocks of each corpus among the first `position`."""
        i = bisect.bisect_right(self._starts, max(position - 1, 0)) - 1
        return [a + b for a, b in zip(self._before[i], self._parts[i].counts(position - self._starts[i]), strict=True)]


def shares_of(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Blocks of each corpus in the shortest period that has the weights exactly, or in one of LONGEST blocks."""
    total = sum(weights)
    exact = [weight / total for weight in weights]
    period = int(np.lcm.reduce([share.denominator for share in exact], dtype=object))
    if period > LONGEST:
        period = LONGEST
    shares = [int(share * period) for share in exact]
    # What rounding down has left goes to the largest remainders.
    by_remainder = sorted(range(len(exact)), key=lambda k: shares[k] - exact[k] * period)
    for k in by_remainder[: period - sum(shares)]:
        shares[k] += 1
    return tuple(shares)


def _order(shares: Sequence[int], seed: int) -> np.ndarray:
    """(D,) the order of a period: seeded, and within one of the shares after every block."""
    period, used = sum(shares), [k for k, share in enumerate(shares) if share]
    if len(used) == 1:
        return np.full(period, used[0], np.int64)
    random = np.random.default_rng([seed, *shares])
    credit = random.uniform(-1, 1, len(used))
    credit -= credit.mean()
    # A credit at the start makes another order for every seed. The largest one that keeps the counts is taken.
    for size in (0.5, 0.25, 0.0):
        order = np.array(used)[_scheduled([shares[k] for k in used], size / (len(used) - 1) * credit)]
        if _is_exact(order, shares):
            return order
    raise AssertionError(f"shares = {shares}: no order keeps them to within one block")


def _scheduled(shares: Sequence[int], credit: np.ndarray) -> list[int]:
    period, count = sum(shares), len(shares)
    least = 1 / (2 * count - 2)
    rates = [share / period for share in shares]
    given, order = [0] * count, []
    for n in range(1, period + 1):
        best, deadline = -1, float("inf")
        for k in range(count):
            owed = rates[k] * n + credit[k] - given[k]
            if owed >= least - 1e-9 and (last := (1 - least - owed) / rates[k]) < deadline:
                best, deadline = k, last
        if best < 0:
            best = max(range(count), key=lambda k: rates[k] * n + credit[k] - given[k])
        given[best] += 1
        order.append(best)
    return order


def _is_exact(order: np.ndarray, shares: Sequence[int]) -> bool:
    """Whether every corpus has given its share of n blocks, to within one, for every n, and of all blocks exactly."""
    period = len(order)
    n = np.arange(1, period + 1, dtype=np.int64)
    for k, share in enumerate(shares):
        given = np.cumsum(order == k)
        if given[-1] != share or np.abs(given * period - n * share).max() > period:
            return False
    return True
