"""Special tokens in a text: as text, which is what a tokenizer does, or as the tokens that they name."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dfm_jax.data.tokenizers.base import END_OF_TEXT, Tokenizer

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
        self._tokenizer, self._marks = tokenizer, dict(marks(tokenizer))
        self.name, self.vocab_size, self.eos_id = tokenizer.name, tokenizer.vocab_size, tokenizer.eos_id
        longest_first = sorted(self._marks, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        # The odd pieces are marks.
        pieces = [self._pattern.split(text) for text in texts]
        encoded = iter(self._tokenizer.encode_batch([piece for split in pieces for piece in split[::2]]))
        rows = []
        for split in pieces:
            parts = [np.asarray(next(encoded))]
            for mark in split[1::2]:
                parts += [np.full(1, self._marks[mark], np.int64), np.asarray(next(encoded))]
            rows.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return rows

    def cut(self, text: str) -> int:
        """See `Tokenizer.cut`. A mark is never cut, nor what may become one."""
        limit = len(text)
        for mark in self._marks:
            begun = next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
            limit = min(limit, len(text) - begun)
        last = 0
        for match in self._pattern.finditer(text, 0, limit):
            last = match.end()
        return last + self._tokenizer.cut(text[last:limit])

    def encode_special(self, text: str) -> np.ndarray:
        return self._tokenizer.encode_special(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._tokenizer.decode_bytes(ids)
