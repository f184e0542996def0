"""`gpt2`: GPT-2's byte-pair encoding of 50257 ids, EOS = 50256."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dfm_jax.data.tokenizers.base import checked
from dfm_jax.data.tokenizers.gpt2_cuts import Cuts
from dfm_jax.data.tokenizers.pieces import PIECE_CHARS, split_long
from dfm_jax.runtime.errors import WorldError


class GPT2Tokenizer:
    name = "gpt2"
    vocab_size = 50257
    eos_id = 50256

    def __init__(self, encoding: Any):
        """encoding: tiktoken's `gpt2` Encoding."""
        self._encoding = encoding
        self.cut = Cuts(encoding)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        encode = functools.partial(self._encoding.encode_to_numpy, disallowed_special=())
        if len(text) <= PIECE_CHARS:
            return encode(text)
        return np.concatenate([encode(piece) for piece in split_long(text, self.cut)])

    def encode_special(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, allowed_special="all")

    def decode(self, ids: Iterable[int]) -> str:
        return self._encoding.decode(checked(ids, self.vocab_size).tolist(), errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = checked(ids, self.vocab_size)
        return self._encoding.decode_bytes(ids[ids != self.eos_id].tolist())


def make(name: str) -> GPT2Tokenizer:
    return _load()


def size(name: str) -> int:
    return GPT2Tokenizer.vocab_size


@functools.cache
def _load() -> GPT2Tokenizer:
    import tiktoken

    try:
        return GPT2Tokenizer(tiktoken.get_encoding("gpt2"))
    except OSError as error:  # requests' errors are OSErrors, and so is an unwritable cache folder
        raise WorldError(
            f"tokenizer.name = gpt2: its tables are in no cache and cannot be downloaded ({type(error).__name__}): "
            "expected TIKTOKEN_CACHE_DIR=DIR, a folder that tiktoken filled on a machine with network "
            "(TIKTOKEN_CACHE_DIR=DIR python -c \"import tiktoken; tiktoken.get_encoding('gpt2')\"), "
            "or tokenizer.name=bytes, which needs no tables"
        ) from error
