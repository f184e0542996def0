"""`bytes`: the 256 values of a UTF-8 byte, and EOS = 256."""

from collections.abc import Iterable, Sequence

import numpy as np

from dfm_jax.data.tokenizers.base import END_OF_TEXT, checked


class ByteTokenizer:
    name = "bytes"
    vocab_size = 257
    eos_id = 256

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.uint16) for text in texts]

    def encode_special(self, text: str) -> np.ndarray:
        texts = self.encode_batch(text.split(END_OF_TEXT.decode()))
        ids = [part for t in texts for part in (np.array([self.eos_id], np.uint16), t)]
        return np.concatenate(ids[1:])

    def cut(self, text: str) -> int:
        return len(text)

    def decode(self, ids: Iterable[int]) -> str:
        ids = checked(ids, self.vocab_size)
        parts = (END_OF_TEXT if i == self.eos_id else bytes((i,)) for i in ids.tolist())
        return b"".join(parts).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = checked(ids, self.vocab_size)
        return ids[ids != self.eos_id].astype(np.uint8).tobytes()


def make(name: str) -> ByteTokenizer:
    return ByteTokenizer()


def size(name: str) -> int:
    return ByteTokenizer.vocab_size
