"""Text to token ids and back: bytes, the GPT-2 byte-pair encoding, or ids as they are."""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from dfm_jax.errors import UsageError, WorldError

NAMES = ("bytes", "gpt2", "ids:N")

# A longer text is encoded in pieces: it bounds the memory of one document and keeps the regular expression's
# backtracking on long runs short.
PIECE_CHARS = 1 << 20

END_OF_TEXT = b"<|endoftext|>"


class Tokenizer(Protocol):
    """Ids are 0 .. vocab_size - 1; `eos_id` ends every document and never comes out of `encode_batch`; -1 is none."""

    name: str
    vocab_size: int
    eos_id: int

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array of ids (int, 1-D) per text, without EOS. Special tokens in a text are ordinary text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text, with EOS shown as `<|endoftext|>`; incomplete UTF-8 becomes U+FFFD. ValueError on unknown ids."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the text itself: EOS stands for none. ValueError on ids outside the vocabulary."""
        ...


def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`; made once per process.

    Raises UsageError on an unknown name, WorldError when GPT-2's tables can be neither found nor downloaded.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name == "gpt2":
        return _gpt2()
    if name.startswith("ids:") and name[4:].isdecimal() and int(name[4:]) > 0:
        return IdTokenizer(int(name[4:]))
    raise UsageError(f"tokenizer.name={name}: accepted {', '.join(NAMES)}")


def vocabulary_size(name: str) -> int:
    """The number of ids of the tokenizer called `name`, without its tables. Raises UsageError on an unknown name."""
    return GPT2Tokenizer.vocab_size if name == "gpt2" else get_tokenizer(name).vocab_size


class ByteTokenizer:
    """The 256 values of a UTF-8 byte, and EOS = 256."""

    name = "bytes"
    vocab_size = 257
    eos_id = 256

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.uint16) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        ids = _checked(ids, self.vocab_size)
        parts = (END_OF_TEXT if i == self.eos_id else bytes((i,)) for i in ids.tolist())
        return b"".join(parts).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = _checked(ids, self.vocab_size)
        return ids[ids != self.eos_id].astype(np.uint8).tobytes()


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding: 50257 ids, EOS = 50256."""

    name = "gpt2"
    vocab_size = 50257
    eos_id = 50256

    def __init__(self, encoding):
        """encoding: tiktoken's `gpt2` Encoding."""
        self._encoding = encoding

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        encode = functools.partial(self._encoding.encode_to_numpy, disallowed_special=())
        if len(text) <= PIECE_CHARS:
            return encode(text)
        return np.concatenate([encode(piece) for piece in split_long(text)])

    def decode(self, ids: Iterable[int]) -> str:
        return self._encoding.decode(_checked(ids, self.vocab_size).tolist(), errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = _checked(ids, self.vocab_size)
        return self._encoding.decode_bytes(ids[ids != self.eos_id].tolist())


class IdTokenizer:
    """`ids:N`: N tokens without a text, for models whose tokenizer is not known; "3 14 15" stands for [3, 14, 15]."""

    eos_id = -1

    def __init__(self, vocab_size: int):
        self.name = f"ids:{vocab_size}"
        self.vocab_size = vocab_size

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            return [_checked(map(int, text.split()), self.vocab_size) for text in texts]
        except ValueError as error:
            raise WorldError(
                f"tokenizer.name={self.name}: accepted text of numbers from 0 to {self.vocab_size - 1} ({error})"
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, _checked(ids, self.vocab_size).tolist()))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b""


def split_long(text: str, size: int = PIECE_CHARS) -> list[str]:
    """Pieces of about `size` characters whose encodings concatenate to that of `text`.

    A cut lies between a character that is no white space and a blank or line feed: no token of either tokenizer
    spans such a place. Where there is none for long, the piece is longer.
    """
    pieces, start = [], 0
    while len(text) - start > size:
        cut = safe_cut(text, start + size)
        if cut < 0:
            break
        pieces.append(text[start:cut])
        start = cut
    pieces.append(text[start:])
    return pieces


_SAFE_CUT = re.compile(r"(?<=\S)[ \n]")


def safe_cut(text: str, start: int) -> int:
    """The first place at or after `start` where `text` can be cut without changing its tokens; -1 if there is none."""
    match = _SAFE_CUT.search(text, start)
    return match.start() if match else -1


@functools.cache
def _gpt2() -> GPT2Tokenizer:
    import tiktoken

    try:
        return GPT2Tokenizer(tiktoken.get_encoding("gpt2"))
    except OSError as error:  # requests' errors are OSErrors, and so is an unwritable cache folder
        raise WorldError(
            f"tokenizer.name=gpt2: its tables are in no cache and cannot be downloaded ({type(error).__name__}): "
            "accepted TIKTOKEN_CACHE_DIR=DIR, a folder that tiktoken filled on a machine with network "
            "(TIKTOKEN_CACHE_DIR=DIR python -c \"import tiktoken; tiktoken.get_encoding('gpt2')\"), "
            "or tokenizer.name=bytes, which needs no tables"
        ) from error


def _checked(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).reshape(-1)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"token ids from {ids.min()} to {ids.max()}: accepted 0 to {vocab_size - 1}")
    return ids
