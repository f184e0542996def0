"""How a mixture is written: `a.jsonl=0.7,fineweb-edu=0.3`, and its weights from some steps on, `2000:0.5/0.5`."""

import math
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from dfm_jax.data.corpora import NAMED, OPTIONS
from dfm_jax.data.views.proportions import LONGEST
from dfm_jax.runtime.errors import UsageError

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class Weighted(NamedTuple):
    """A corpus of a mixture, as it was written, and its weight."""

    corpus: str
    weight: Fraction


def mixture(spec: str, field: str) -> tuple[Weighted, ...]:
    """The corpora of a mixture with their weights; () where `spec` is one corpus. field: to name in an error.

    What is known as it stands is one corpus, whatever signs it holds; so is a single item of which nothing is known.
    Raises UsageError for a corpus without a weight or twice there, and for weights that are negative or all 0.
    """
    items = [_divided(item) for item in spec.split(",")]
    one = len(items) == 1
    if _is_known(spec) or (one and not items[0].weight):
        return ()
    if not any(_is_known(corpus) or (not one and corpus and _NUMBER.fullmatch(weight)) for corpus, weight in items):
        return ()
    parts: list[Weighted] = []
    for corpus, weight in items:
        if not (corpus and weight):
            what = corpus or (f"={weight}" if weight else "nothing")
            raise UsageError(f"{field} = {spec}: {what} has no weight: expected CORPUS=WEIGHT for each")
        if corpus in [part.corpus for part in parts]:
            raise UsageError(f"{field} = {spec}: {corpus} is there twice: expected each corpus once")
        parts.append(Weighted(corpus, _number(weight, f"{field} = {spec}: the weight of {corpus}")))
    _check([part.weight for part in parts], f"{field} = {spec}")
    return tuple(parts)


def changes(texts: Sequence[str], count: int, field: str) -> tuple[tuple[int, tuple[Fraction, ...]], ...]:
    """(step, weights) of each `STEP:WEIGHT/WEIGHT...`, in their order, for a mixture of `count` corpora.

    Raises UsageError, naming `field`, for another number of weights and for steps that do not increase.
    """
    found: list[tuple[int, tuple[Fraction, ...]]] = []
    for text in texts:
        where = f"{field} = {text}"
        step, _, numbers = text.partition(":")
        weights = tuple(_number(number, f"{where}: a weight") for number in numbers.split("/"))
        if len(weights) != count:
            expected = f"{count}, one a corpus of data.train" if count else "none: data.train is one corpus"
            raise UsageError(f"{where}: {len(weights)} weights: expected {expected}")
        _check(weights, where)
        if int(step) <= (found[-1][0] if found else 0):
            raise UsageError(f"{where}: expected steps above 0 that increase")
        found.append((int(step), weights))
    return tuple(found)


def shares(parts: Sequence[Weighted]) -> list[Fraction]:
    """The weights as shares of 1."""
    total = sum(part.weight for part in parts)
    return [part.weight / total for part in parts]


def _check(weights: Sequence[Fraction], where: str) -> None:
    total = sum(weights)
    if not total:
        raise UsageError(f"{where}: all weights are 0: expected at least one above 0")
    if least := [weight for weight in weights if weight and weight * LONGEST < total]:
        share = float(least[0] / total)
        raise UsageError(f"{where}: a weight of {share:g} of all: expected 0, or at least 1 / {LONGEST:,} of all")


class _Item(NamedTuple):
    """What is between two commas: a corpus, and what is written as its weight, '' for nothing."""

    corpus: str
    weight: str


def _divided(item: str) -> _Item:
    """`a.jsonl:column=2` is a corpus with an option and no weight."""
    corpus, _, weight = item.strip().rpartition("=")
    if not corpus or re.search(rf":({'|'.join(OPTIONS)})$", corpus):
        corpus, weight = item.strip(), ""
    return _Item(os.path.expanduser(corpus.rstrip()), weight.lstrip())


def _is_known(corpus: str) -> bool:
    """Whether `corpus` is a file or folder, or a name."""
    return corpus in ("pydocs", *NAMED) or os.path.exists(os.path.expanduser(corpus))


def _number(text: str, what: str) -> Fraction:
    if not _NUMBER.fullmatch(text) or not 0 <= float(text) < math.inf:
        raise UsageError(f"{what} = {text}: expected a number of 0 or more")
    return Fraction(text)
