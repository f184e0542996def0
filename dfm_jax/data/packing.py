"""The forms of rows that published networks were trained on, cut from the stream that `prepare` makes for all of them.

    continuous  the stream as it comes, cut every `length` tokens
    wrapped     `length` - 2 tokens of it between a beginning and an end of text (MDLM and Duo on OpenWebText)
    rows        one document a row: beginning, document, end of text, then padding that no figure scores (UDLM on LM1B)

The beginning is the tokenizer's own token for it ([CLS], a beginning of text), or its end of text; padding likewise.
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from dfm_jax.data.shards import Blocks, TokenStream
from dfm_jax.data.tokenizers import Tokenizer
from dfm_jax.runtime.errors import UsageError

PACKED = WRAPPED, ROWS = "wrapped", "rows"
_READ = 1 << 22  # tokens read at a time


def packed(stream: TokenStream, packing: str, tokenizer: Tokenizer) -> TokenStream:
    """`stream` cut in the form `packing`; itself where that is what its folder was prepared for.

    Raises UsageError where the form needs an end of text and the tokenizer has none.
    """
    if packing not in PACKED:
        return stream
    if tokenizer.eos_id < 0:
        raise UsageError(
            f"config.data.packing = {packing}: expected continuous with tokenizer {tokenizer.name}, which has no end "
            "of text"
        )
    pad = getattr(tokenizer, "special", {}).get("pad", tokenizer.eos_id)
    return PackedStream(stream, packing, beginning_of_rows(tokenizer), tokenizer.eos_id, pad)


def beginning_of_rows(tokenizer: Tokenizer) -> int:
    """The token that rows of these forms begin with; -1 for none."""
    special = getattr(tokenizer, "special", {})
    return special.get("cls", special.get("bos", tokenizer.eos_id))


class PackedStream(TokenStream):
    """A prepared folder whose rows have another form. begin, end, pad: ids."""

    def __init__(self, stream: TokenStream, packing: str, begin: int, end: int, pad: int):
        super().__init__(stream.folder, stream.manifest)
        self.packing, self.begin, self.end, self.pad = packing, begin, end, pad

    @property
    def fingerprint(self) -> str:
        content = f"{super().fingerprint} {self.packing} {self.begin} {self.end} {self.pad}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """The place of every document's end of text, (documents,) int64, ascending."""
        found = []
        for start in range(0, self.num_tokens, _READ):
            tokens = self.read(start, min(start + _READ, self.num_tokens))
            found.append(np.flatnonzero(tokens == self.end) + start)
        return np.concatenate(found)

    def num_blocks(self, length: int) -> int:
        if length < 3:
            return 0
        return self.num_tokens // (length - 2) if self.packing == WRAPPED else len(self.ends)

    def blocks(self, length: int) -> "Wrapped | Rows | Blocks":
        if length < 3:
            raise UsageError(f"config.model.length = {length}: expected 3 or more with data.packing = {self.packing}")
        return Wrapped(self, length) if self.packing == WRAPPED else Rows(self, length)


class Wrapped(Sequence):
    """Row i is tokens [i (L - 2), (i + 1) (L - 2)) of the stream between a beginning and an end of text."""

    def __init__(self, stream: PackedStream, length: int):
        self._stream, self.length = stream, length

    def __len__(self) -> int:
        return self._stream.num_blocks(self.length)

    def __getitem__(self, index) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        stream, inside = self._stream, self.length - 2
        row = np.empty(self.length, stream.dtype)
        row[0], row[-1] = stream.begin, stream.end
        row[1:-1] = stream.read(int(index) * inside, (int(index) + 1) * inside)
        return row


class Rows(Sequence):
    """Row i is document i: beginning, at most L - 2 of its tokens, end of text, padding."""

    def __init__(self, stream: PackedStream, length: int):
        self._stream, self.length = stream, length

    def __len__(self) -> int:
        return len(self._stream.ends)

    def scored(self, index: int) -> int:
        """How many of the row's first tokens are scored: all but the padding."""
        first, stop = self._place(index)
        return 2 + stop - first

    def __getitem__(self, index) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        stream = self._stream
        first, stop = self._place(index)
        row = np.full(self.length, stream.pad, stream.dtype)
        row[0] = stream.begin
        if stop > first:
            row[1 : 1 + stop - first] = stream.read(first, stop)
        row[1 + stop - first] = stream.end
        return row

    def _place(self, index: int) -> tuple[int, int]:
        """The tokens of the document in the stream, cut to what the row holds."""
        ends = self._stream.ends
        first = int(ends[index - 1]) + 1 if index else 0
        return first, min(int(ends[index]), first + self.length - 2)
