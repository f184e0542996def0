"""Text to token ids and back: bytes, GPT-2's byte-pair encoding, a tokenizer.json, the signs of text8, ids as they are.

A new tokenizer is a file in this folder and a line in TABLE.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from dfm_jax.data.tokenizers import byte, changed, char, gpt2, hf, ids
from dfm_jax.data.tokenizers.base import CHARACTERS, END_OF_TEXT, Tokenizer
from dfm_jax.data.tokenizers.pieces import PIECE_CHARS, split_long
from dfm_jax.runtime.errors import UsageError

__all__ = [
    "CHARACTERS",
    "END_OF_TEXT",
    "NAMES",
    "PIECE_CHARS",
    "Tokenizer",
    "get_tokenizer",
    "split_long",
    "vocabulary_size",
]


class Entry(NamedTuple):
    """pattern: the names that it answers to. make: the tokenizer of a name. size: its vocabulary, without tables."""

    pattern: str
    make: Callable[[str], Tokenizer]
    size: Callable[[str], int]


# What a user writes -> its entry.
TABLE = {
    "bytes": Entry("bytes", byte.make, byte.size),
    "gpt2": Entry("gpt2", gpt2.make, gpt2.size),
    "hf:NAME_OR_FOLDER": Entry("hf:.+", hf.make, hf.size),
    "char:text8": Entry("char:text8", char.make, char.size),
    "ids:N": Entry(r"ids:0*[1-9][0-9]*", ids.make, ids.size),
    # Asked first: what is before the sign may be any of the others.
    "NAME:without=ID": Entry(
        changed.PATTERN,
        lambda name: changed.make(name, get_tokenizer),
        lambda name: changed.size(name, vocabulary_size),
    ),
}
NAMES = tuple(TABLE)


def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`.

    Raises UsageError on an unknown name, WorldError when GPT-2's tables can be neither found nor downloaded.
    """
    return _entry(name).make(name)


def vocabulary_size(name: str) -> int:
    """The number of ids of the tokenizer called `name`, without its tables. Raises UsageError on an unknown name."""
    return _entry(name).size(name)


def _entry(name: str) -> Entry:
    for entry in reversed(TABLE.values()):
        if re.fullmatch(entry.pattern, name):
            return entry
    raise UsageError(f"tokenizer.name = {name}: expected one of {', '.join(NAMES)}")
