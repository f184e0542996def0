"""What a corpus is made of: units of parts, parts of rows of text, and the rules by which they are read."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from dfm_jax.runtime.errors import UsageError, WorldError


class Row(NamedTuple):
    """A document, or a piece of one: the next row goes on with it unless `end`. Or a record, whose prompt is `text`."""

    text: str
    end: bool = True
    repaired: bool = False  # invalid UTF-8 of this document became U+FFFD
    response: str | None = None  # of a record


class Form(Protocol):
    """Where a row holds its prompt and its response (see readers/records.py)."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        ...

    @property
    def identity(self) -> list[Any]:
        """What the records depend on besides the rows, as JSON."""
        ...

    def check(self, present: Iterable[str], place: str) -> None:
        """Raises UsageError for a column that is not among those of `place`."""
        ...

    def record(self, row: Mapping[str, Any], place: str, repaired: bool = False) -> Row:
        """The record of a row. Raises UsageError, naming `place` and the column, for a row that is none."""
        ...


class Fault(NamedTuple):
    """What is no row: `error` ends a preparation that stops at it. `file`: the rest of the file is lost with it."""

    error: UsageError | WorldError
    place: str  # FILE:LINE, or FILE
    file: bool = False


Item = Row | Fault | None  # None: a row without text
Cut = Callable[[str], int]  # see Tokenizer.cut


class Part(Protocol):
    """What is read as one: a file, or some row groups of one."""

    name: str
    size: int  # its share of the work: bytes of its file, or 1 where that is unknown
    key: str  # the same for the same rows, wherever they are read from; '' where that is not known

    def rows(self, skip: int, cut: Cut) -> Iterator[Item]:
        """Its rows from number `skip` on, always the same for the same `cut`, which divides long documents."""
        ...

    def fraction(self) -> float:
        """How much of it `rows` has read, 0 to 1."""
        ...


class Unit:
    """Parts that one process prepares, to shards of their own."""

    def __init__(self, parts: Sequence[Part], name: str = ""):
        self.parts = parts
        self.name = name or parts[0].name + (f" and {len(parts) - 1} more" if len(parts) > 1 else "")
        self.size = sum(part.size for part in parts)
        self._passed, self._current = 0, 0

    def rows(self, skip: int = 0, cut: Cut = len) -> Iterator[Item]:
        """The rows of the first part without its first `skip` ones, and those of all the others."""
        return (item for _, item in self.items(0, len(self.parts), skip, cut))

    def items(self, first: int, stop: int, skip: int, cut: Cut) -> Iterator[tuple[int, Item]]:
        """The rows of parts first .. stop - 1, each with the number of its part; `skip` of them are left out."""
        for i in range(first, stop):
            self.begin(i)
            left_out = skip if i == first else 0
            for item in self.parts[i].rows(left_out, cut):
                yield i, item

    def begin(self, index: int) -> None:
        """All parts before number `index` are done."""
        if index < self._current:
            self._passed, self._current = 0, 0
        self._passed += sum(part.size for part in self.parts[self._current : index])
        self._current = index

    def fraction(self) -> float:
        """How much of it has been read, 0 to 1."""
        if self._current >= len(self.parts):
            return 1.0
        part = self.parts[self._current]
        return min(1.0, (self._passed + part.size * part.fraction()) / max(self.size, 1))


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a named corpus means. `splits` maps ours ('train', 'valid') to the hub's."""

    hub: str = ""
    config: str | None = None
    splits: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"train": "train", "valid": "validation"})
    column: str = "text"
    documents: str = "file"  # what a document of a .txt is: the whole 'file', or one of its 'lines'
    detokenize: Callable[[str], str] | None = None
    keep_empty: bool = False  # an empty row is a document, an EOS alone
    keep_newline: bool = False  # a line of a .txt keeps its line feed, unless it is blank
    form: Form | None = None  # of records; None where the rows are text

    def flags(self) -> list[bool]:
        """The part of an identity that says which rules of ours change the text."""
        return [self.detokenize is not None, self.keep_empty, self.keep_newline]
