"""What a corpus is made of: rows of text in units, and the rules by which they are read."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol


class Row(NamedTuple):
    """A document, or a piece of one: the next row goes on with it unless `end`."""

    text: str
    end: bool = True
    repaired: bool = False  # invalid UTF-8 of this document became U+FFFD


class Unit(Protocol):
    """A part of a corpus that one process prepares."""

    name: str
    size: int  # its share of the work: bytes of its files, or 1 where that is unknown

    def rows(self, skip: int) -> Iterator[Row | None]:
        """Its rows from number `skip` on, always the same; None stands for a row without text."""
        ...

    def fraction(self) -> float:
        """How much of it `rows` has read, 0 to 1."""
        ...


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
