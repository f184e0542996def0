"""`char:text8`: the 27 signs of text8, a blank = 0 and a to z = 1 to 26, without an end of text."""

from collections.abc import Iterable, Sequence

import numpy as np

from dfm_jax.data.tokenizers.base import checked
from dfm_jax.runtime.errors import WorldError

SIGNS = " abcdefghijklmnopqrstuvwxyz"
_ID = np.full(256, 255, np.uint8)
_ID[np.frombuffer(SIGNS.encode(), np.uint8)] = np.arange(len(SIGNS), dtype=np.uint8)
_SIGN = np.frombuffer(SIGNS.encode(), np.uint8)


class Text8Tokenizer:
    name = "char:text8"
    vocab_size = len(SIGNS)
    eos_id = -1

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        ids = _ID[np.frombuffer(text.encode("ascii", "replace"), np.uint8)]
        if (ids == 255).any():
            sign = next(c for c in text if c not in SIGNS)
            raise WorldError(f"tokenizer.name = {self.name}: expected text of a to z and blanks, not {sign!r}")
        return ids

    def encode_special(self, text: str) -> np.ndarray:
        return self._encode(text)

    def cut(self, text: str) -> int:
        return len(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("ascii")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return _SIGN[checked(ids, self.vocab_size)].tobytes()


def make(name: str) -> Text8Tokenizer:
    return Text8Tokenizer()


def size(name: str) -> int:
    return Text8Tokenizer.vocab_size
