"""What every tokenizer answers."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

CHARACTERS = ("bytes", "char:text8")  # tokenizers whose blank is a token by itself
END_OF_TEXT = b"<|endoftext|>"


class Tokenizer(Protocol):
    """Ids are 0 .. vocab_size - 1; `eos_id` ends every document and never comes out of `encode_batch`; -1 is none."""

    name: str
    vocab_size: int
    eos_id: int

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array of ids (int, 1-D) per text, without EOS. Special tokens in a text are ordinary text."""
        ...

    def encode_special(self, text: str) -> np.ndarray:
        """The ids of one text in which the names of special tokens, such as `<|endoftext|>`, stand for them."""
        ...

    def cut(self, text: str) -> int:
        """The last place found, in characters, at which `text` can be cut whatever follows it; 0 if there is none.

        A cut at p changes no token: for every `more`, the ids of `text + more` are those of `text[:p]` and then those
        of `text[p:] + more`. It is what bounds the memory of a document that is longer than the memory.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text, with EOS shown as `<|endoftext|>`; incomplete UTF-8 becomes U+FFFD. ValueError on unknown ids."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the text itself: EOS stands for none. ValueError on ids outside the vocabulary."""
        ...


def checked(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    """The ids as (n,) int64. Raises ValueError where one is outside the vocabulary."""
    ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).reshape(-1)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"token ids = {ids.min()} to {ids.max()}: expected 0 to {vocab_size - 1}")
    return ids
