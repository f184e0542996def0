"""Special tokens in a text: as text, which is what a tokenizer does, or as the tokens that they name."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dfm_jax.data.tokenizers.base import END_OF_TEXT, Tokenizer
from dfm_jax.data.tokenizers.pieces import split_long

SPECIAL = ("text", "parse")


def marked(tokenizer: Tokenizer, special: str) -> Tokenizer:
    """The tokenizer as `data.special` says: itself for 'text'; for 'parse' one that makes tokens of marks in a text."""
    return Marked(tokenizer) if special == "parse" else tokenizer


def marks(tokenizer: Tokenizer) -> Mapping[str, int]:
    """The special tokens of a tokenizer: how each is written, and its id."""
    own: Mapping[str, int] | None = getattr(tokenizer, "marks", None)
    if own is not None:
        return own
    return {END_OF_TEXT.decode(): tokenizer.eos_id} if tokenizer.eos_id >= 0 else {}


class Marked:
    """A tokenizer that makes its special tokens of the marks in a text, such as `<|endoftext|>`."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._marks = tokenizer, tuple(marks(tokenizer))
        self.name, self.vocab_size, self.eos_id = tokenizer.name, tokenizer.vocab_size, tokenizer.eos_id
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._marks, key=len, reverse=True))) or "(?!)")

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.concatenate([self.encode_special(piece) for piece in split_long(t, self.cut)]) for t in texts]

    def encode_special(self, text: str) -> np.ndarray:
        return self._tokenizer.encode_special(text)

    def cut(self, text: str) -> int:
        """See `Tokenizer.cut`. The cut is within what stands between two marks, where the tokenizer alone makes one."""
        end = len(text)
        for mark in self._marks:  # what may become one is left
            begun = next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
            end = min(end, len(text) - begun)
        for match in reversed(list(self._pattern.finditer(text, 0, end))):
            if place := self._tokenizer.cut(text[match.end() : end]):
                return match.end() + place
            end = match.start()
        return self._tokenizer.cut(text[:end])

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._tokenizer.decode_bytes(ids)
