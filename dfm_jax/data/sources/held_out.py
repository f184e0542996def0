"""One corpus as two: what is trained on, and what is held out to measure it, chosen by contents alone.

A document is held out where the SHA-256 of its text, as a number in [0, 1), is below the share. So it stays on its
side however files are named or ordered, and when others come or go; equal documents are on one side. A corpus of fewer
than FEW documents is divided by pieces of about 4 kB instead, cut at blank lines; what follows a gap is a new document.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence

from dfm_jax.data.corpora import Corpus
from dfm_jax.data.rows import Cut, Item, Part, Row, Unit
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.terminal import Heartbeat

VERSION = 2  # of the rule: another one makes other shards
FEW = 100  # documents; fewer are divided by pieces
PIECE, LONGEST = 4096, 8192  # characters of a piece: at the first blank line from PIECE on, at the latest at LONGEST
DECIDE = 1 << 20  # characters of a document that its side depends on, so that a long one need not be in memory
_ROW = 1 << 18  # characters of pieces that are joined before they are handed on


@dataclasses.dataclass(frozen=True)
class Rule:
    """share: of the documents, or of their pieces, that is held out. lowest: the place of a text that is held out too,
    where the share alone would hold nothing out."""

    share: float
    pieces: bool
    lowest: float = -1.0

    def holds_out(self, text: str) -> bool:
        at = place(text)
        return at < self.share or at == self.lowest


def place(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def side(
    corpus: Corpus, share: float, where: str, *, held_out: bool, note: Callable[[str], None] = lambda line: None
) -> Corpus:
    """The part of `corpus` that is trained on, or that is held out. where: `FIELD = VALUE`, for errors. note: prints.

    Preparing it reads the corpus once more where it has fewer than FEW documents, else its first documents. Its units
    raise WorldError where there is too little text to divide.
    """

    def units(memory) -> Sequence[Unit]:
        whole = corpus.units(memory)
        with Heartbeat(lambda: f"{where}: still reading it, to hold a part out", note):
            rule = find_rule(whole, share, where, records=corpus.records)
        return [Unit([HalfPart(part, rule, held_out) for part in unit.parts], unit.name) for unit in whole]

    mark = {"held_out": [VERSION, share, held_out]}
    return dataclasses.replace(
        corpus,
        identity=lambda memory: {**corpus.identity(memory), **mark},
        units=units,
        earlier=lambda: mark,  # no earlier version had it
    )


def find_rule(units: Sequence[Unit], share: float, where: str, *, records: bool = False) -> Rule:
    """Documents, or pieces where there are few. Raises WorldError where not two different ones can be told apart.

    records: the documents are records, which are never cut; one is on the side of its prompt.
    """
    count, lowest, highest = 0, 1.0, 0.0
    for at in (place(text) for unit in units for text in _beginnings(unit.rows()) if text or records):
        count, lowest, highest = count + 1, min(lowest, at), max(highest, at)
        if count >= FEW and lowest < share <= highest:
            return Rule(share, pieces=False)
    if records:
        if lowest >= highest:
            raise WorldError(
                f"{where}: not two records with different prompts, to hold one out: expected more records, or "
                "--config.data.valid=FILE with records to validate on"
            )
        return Rule(share if highest >= share else 0.0, pieces=False, lowest=lowest)
    if count >= FEW and lowest < highest:
        return Rule(share if highest >= share else 0.0, pieces=False, lowest=lowest)
    sizes: collections.Counter[float] = collections.Counter()
    for unit in units:
        for piece, _ in _pieces(unit.rows()):
            sizes[place(piece)] += len(piece)
    if not sizes:
        return Rule(share, pieces=False)  # what reads it says why there is no text
    total = sizes.total()
    most, least = (1 + share) / 2 * total, min(share * total, PIECE) / 2
    ours = sum(size for at, size in sizes.items() if at < share)
    if least <= ours <= most:
        return Rule(share, pieces=True)
    # Where next to nothing would be held out, one more piece is.
    more = [at for at, size in sorted(sizes.items()) if at >= share and least <= ours + size <= most]
    if more:
        return Rule(share, pieces=True, lowest=more[0])
    # Where nothing else fits, or through repetition nearly all would be, it is one piece.
    fitting = [at for at in sorted(sizes) if sizes[at] <= most]
    if len(sizes) < 2 or not fitting:
        raise WorldError(
            f"{where}: too little text to hold a part of it out (one piece of {PIECE} characters, or the same one "
            "again and again): expected more text, or --config.data.valid=FILE with a text to validate on"
        )
    return Rule(0.0, pieces=True, lowest=fitting[0])


def _beginnings(items: Iterator[Item]) -> Iterator[str]:
    """Of each document the characters that its side depends on."""
    text = ""
    for item in items:
        if isinstance(item, Row):
            text += item.text[: DECIDE - len(text)]
            if item.end:
                yield text
                text = ""


def _pieces(items: Iterator[Item]) -> Iterator[tuple[str, Row]]:
    """The pieces of the documents, each with the row that its end is in; the last one of a document has all of it."""
    rest = ""
    for item in items:
        if not isinstance(item, Row):
            continue
        rest += item.text
        start = 0
        while stop := _cut(rest, start, item.end):
            yield rest[start:stop], item._replace(end=item.end and stop == len(rest))
            start = stop
        rest = rest[start:]


def _cut(text: str, start: int, whole: bool) -> int:
    """Where the piece of `text` that begins at `start` ends; 0 where that is not known yet, or nothing is left.

    whole: the document ends with the text. The end depends on the next LONGEST characters only.
    """
    left = len(text) - start
    if not left or (not whole and left < LONGEST):
        return 0
    if left <= PIECE:
        return len(text)
    window = text[start : start + LONGEST]
    lines = window.find("\n", PIECE - 1)
    while lines >= 0:  # the first empty line, or one of blanks, from PIECE on
        following = window.find("\n", lines + 1)
        if following >= 0 and not window[lines:following].strip():
            return start + following + 1
        lines = following
    if left <= LONGEST and whole:
        return len(text)
    for mark in ("\n", " "):
        if (at := window.rfind(mark, PIECE)) >= 0:
            return start + at + 1
    return start + LONGEST


class HalfPart:
    """One side of a part of the corpus."""

    def __init__(self, part: Part, rule: Rule, held_out: bool):
        self.name, self.size = part.name, part.size
        own = f"{part.key} {VERSION} {rule} {held_out}"
        self.key = hashlib.sha256(own.encode()).hexdigest()[:32] if part.key else ""
        self._part, self._rule, self._held_out = part, rule, held_out

    def fraction(self) -> float:
        return self._part.fraction()

    def rows(self, skip: int, cut: Cut) -> Iterator[Item]:
        items = self._part.rows(0, cut)
        for item in self._of_pieces(items, cut) if self._rule.pieces else self._of_documents(items):
            if skip:
                skip -= 1
            else:
                yield item

    def _of_documents(self, items: Iterator[Item]) -> Iterator[Item]:
        waiting: list[Row] = []
        seen, ours = "", None
        for item in items:
            if not isinstance(item, Row):
                yield item
                continue
            waiting.append(item)
            if ours is None:
                seen += item.text[: DECIDE - len(seen)]
                if item.end or len(seen) == DECIDE:
                    ours = self._rule.holds_out(seen) == self._held_out
            if ours is not None:
                yield from waiting if ours else ()
                waiting = []
            if item.end:
                seen, ours = "", None

    def _of_pieces(self, items: Iterator[Item], cut: Cut) -> Iterator[Item]:
        others: list[Item] = []

        def rows() -> Iterator[Item]:
            empty = True  # as far as the document has been read
            for item in items:
                if isinstance(item, Row) and (item.text or not empty or not item.end):
                    empty = item.end or (empty and not item.text)
                    yield item
                else:
                    others.append(item)

        text, repaired = "", False  # of pieces that follow each other
        for piece, row in _pieces(rows()):
            yield from others
            others.clear()
            if self._rule.holds_out(piece) == self._held_out:
                text, repaired = text + piece, repaired or row.repaired
                # A cut that changes no token, which leaves something for the row that ends the document.
                if len(text) >= _ROW and (at := cut(text[:-1])):
                    yield Row(text[:at], False)
                    text = text[at:]
            elif text:
                yield Row(text, True, repaired)
                text, repaired = "", False
            if row.end and text:
                yield Row(text, True, repaired)
                text, repaired = "", False
        yield from others
