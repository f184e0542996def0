"""`ids:N`: N tokens without a text, for models whose tokenizer is not known; "3 14 15" stands for [3, 14, 15]."""

from collections.abc import Iterable, Sequence

import numpy as np

from dfm_jax.data.tokenizers.base import checked
from dfm_jax.runtime.errors import WorldError


class IdTokenizer:
    eos_id = -1

    def __init__(self, vocab_size: int):
        self.name = f"ids:{vocab_size}"
        self.vocab_size = vocab_size

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            return [checked(map(int, text.split()), self.vocab_size) for text in texts]
        except ValueError as error:
            raise WorldError(
                f"tokenizer.name = {self.name}: expected text of numbers from 0 to {self.vocab_size - 1} ({error})"
            ) from error

    def encode_special(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def cut(self, text: str) -> int:
        return max(text.rfind(" "), text.rfind("\n"), 0)

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, checked(ids, self.vocab_size).tolist()))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b""


def make(name: str) -> IdTokenizer:
    return IdTokenizer(size(name))


def size(name: str) -> int:
    return int(name.removeprefix("ids:"))
