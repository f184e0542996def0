"""`NAME:without=ID` and `NAME:size=N`: another tokenizer with one id taken out, or with ids added that mean no text.

Published networks need both. A mask that is one of the tokenizer's own tokens stands for no text, and the ids after it
move down by one. Duo's vocabulary has a padding token after those of GPT-2, which no text gives either.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from dfm_jax.data.tokenizers.base import Tokenizer, checked
from dfm_jax.data.tokenizers.special import marks
from dfm_jax.runtime.errors import UsageError, WorldError

PATTERN = r"(?P<base>.+):(?P<change>without|size)=(?P<number>0|[1-9]\d{0,8})"
ADDED = "[PAD]"  # what an added id is shown as


class ChangedTokenizer:
    """See `Tokenizer`. What the other tokenizer has besides, such as `special`, has the ids of this one."""

    def __init__(self, base: Tokenizer, change: str, number: int):
        self._base = base
        self.name = f"{base.name}:{change}={number}"
        self.vocab_size = size_of(base.name, base.vocab_size, change, number)
        self._without = number if change == "without" else -1
        self.eos_id = self._ours(base.eos_id)
        special: Mapping[str, int] = getattr(base, "special", {})
        self.special = {role: self._ours(i) for role, i in special.items() if i != self._without}
        self.marks = {mark: self._ours(i) for mark, i in marks(base).items() if i != self._without}

    def cut(self, text: str) -> int:
        return self._base.cut(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._moved(ids) for ids in self._base.encode_batch(texts)]

    def encode_special(self, text: str) -> np.ndarray:
        return self._moved(self._base.encode_special(text))

    def _moved(self, ids: np.ndarray) -> np.ndarray:
        """Ids there as ids here. Raises WorldError where one is the token that is taken out."""
        if self._without < 0:
            return ids
        if (ids == self._without).any():
            raise WorldError(f"tokenizer.name = {self.name}: expected a text without the token {self._without}")
        return np.where(ids > self._without, ids - 1, ids)

    def decode(self, ids: Iterable[int]) -> str:
        ids = checked(ids, self.vocab_size)
        if self._without >= 0:
            return self._base.decode(self._theirs(ids))
        added = np.flatnonzero(ids >= self._base.vocab_size)
        parts = np.split(ids, added)
        texts = [self._base.decode(parts[0])]
        texts += [ADDED + (self._base.decode(part[1:]) if len(part) > 1 else "") for part in parts[1:]]
        return "".join(texts)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = checked(ids, self.vocab_size)
        if self._without < 0:
            return self._base.decode_bytes(ids[ids < self._base.vocab_size])
        return self._base.decode_bytes(self._theirs(ids))

    def _theirs(self, ids: np.ndarray) -> np.ndarray:
        return ids + (ids >= self._without)

    def _ours(self, i: int) -> int:
        """The id here of one there; -1 for none. The end of a text must not be the one that is taken out."""
        if i == self._without and i >= 0:
            raise UsageError(f"tokenizer.name = {self.name}: expected another id than {i}, the end of a text")
        return i - (0 <= self._without < i)


def parts(name: str) -> tuple[str, str, int] | None:
    """(the other tokenizer, 'without' or 'size', the number), or None for a name without a change."""
    match = re.fullmatch(PATTERN, name)
    return None if match is None else (match["base"], match["change"], int(match["number"]))


def size_of(base: str, size: int, change: str, number: int) -> int:
    """The ids of a tokenizer called `base` that has `size` of them. UsageError where the change means nothing."""
    if change == "size":
        if number < size:
            raise UsageError(f"tokenizer.name = {base}:size={number}: expected {size} or more, which {base} has")
        return number
    if number >= size or size < 2:
        raise UsageError(f"tokenizer.name = {base}:without={number}: expected an id from 0 to {size - 1}")
    return size - 1


def make(name: str, get_tokenizer: Callable[[str], Tokenizer]) -> ChangedTokenizer:
    return _made(get_tokenizer(_parts(name)[0]), *_parts(name)[1:])


def size(name: str, vocabulary_size: Callable[[str], int]) -> int:
    base, change, number = _parts(name)
    return size_of(base, vocabulary_size(base), change, number)


@functools.lru_cache(maxsize=4)
def _made(base: Tokenizer, change: str, number: int) -> ChangedTokenizer:
    return ChangedTokenizer(base, change, number)


def _parts(name: str) -> tuple[str, str, int]:
    found = parts(name)
    assert found is not None
    return found
