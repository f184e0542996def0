"""Where a text can be cut without changing its GPT-2 tokens, whatever follows it.

GPT-2 first divides a text into words by an expression (letters, numbers, other signs, each with a blank before it;
white space; 's, 't, ... apart), then encodes each word by itself by merging pairs. So there are two kinds of cut.

Between words. The expression looks ahead only behind white space, and never back. Hence a cut is right
  - between any sign and the white space after it;
  - between two signs of different kinds (letter, number, other), for no word has both after its first blank, save an
    apostrophe before a letter.
What is a letter differs between versions of Unicode. Only characters whose kind was the same in Unicode 3.2 as it is
in this Python count; the others never make a cut.

Within a word without end (a line of one letter, a file of blanks). Let w be what is known of the word. No token has
more than L bytes, so the tokens of the whole word, however it goes on, have an end j among the last L places of w.
Pairs are merged by rank and merges that stay on one side of j do not depend on the other side, so up to j the tokens
are those of w[:j] alone. A place b where the tokens of w[:j] have an end, for each of these j, is an end in the whole
word too. That b is an end in w[:j] is seen without encoding w[:j]: two encodings stand side by side unchanged exactly
if the last token of the one and the first of the other do.
"""

import functools
import re
import sys
import unicodedata
from typing import Any

from dfm_jax.data.tokenizers.pieces import last_match

# A cut between words is looked for in this many characters at the end of a text, then in all of it.
_WINDOW = 1 << 12
# A cut within a word is looked for where the last characters, this many, are all of one kind.
_LONG = 1 << 16
_SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_ASCII_SIGNS = r"!-/:-@\[-`{-~"
_QUICK = re.compile(rf"(?<=[A-Za-z0-9{_ASCII_SIGNS}])[{_SPACES}]|(?<=[A-Za-z0-9])[{_ASCII_SIGNS}]")


class Cuts:
    """cuts(text) is the last place found where `text` can be cut; 0 if there is none (see Tokenizer.cut)."""

    def __init__(self, encoding: Any):
        """encoding: tiktoken's `gpt2` Encoding."""
        self._encoding = encoding
        self._encode_word = getattr(encoding, "_encode_single_piece", None)  # without it no word is cut
        self._longest = max(map(len, encoding.token_byte_values()))

    def __call__(self, text: str) -> int:
        return (
            last_match(_QUICK, text, len(text) - _WINDOW)
            or last_match(_between_words(), text, len(text) - _WINDOW)
            or last_match(_between_words(), text, 0)
            or self._within_word(text)
        )

    def _within_word(self, text: str) -> int:
        if len(text) < _LONG or self._encode_word is None:
            return 0
        kind = next((kind for kind in _KINDS if _runs()[kind].fullmatch(text, len(text) - _LONG)), None)
        if kind is None:
            return 0
        if kind == "spaces":
            text = text[:-1]  # the last blank may belong to the word that follows
        tokens = self._encoding.encode_ordinary(text)
        tail = text[-_LONG // 2 :].encode()
        for size in (512, 4096, 16384):
            number, length = self._end(tokens, tail, size)
            if length and self._is_certain(tokens[-number - 1], tail[-length:]):
                return len(text) - len(tail[-length:].decode())
        return 0

    def _end(self, tokens: list[int], tail: bytes, size: int) -> tuple[int, int]:
        """The last end of a token that is `size` bytes or more from the end: tokens and bytes after it, or (0, 0)."""
        length = 0
        for number, token in enumerate(reversed(tokens), 1):
            length += len(self._encoding.decode_single_token_bytes(token))
            if number == len(tokens) or length > len(tail):
                break
            if length >= size and tail[-length] & 0xC0 != 0x80:  # not amid the bytes of a character
                return number, length
        return 0, 0

    def _is_certain(self, before: int, rest: bytes) -> bool:
        """Whether the token `before` ends where `rest`, the end of what is known of the word, begins, for good."""
        assert self._encode_word is not None
        firsts = {self._encode_word(rest[: len(rest) - i])[0] for i in range(self._longest)}
        bytes_of = self._encoding.decode_single_token_bytes
        return all(self._encode_word(bytes_of(before) + bytes_of(first)) == [before, first] for first in firsts)


_KINDS = ("letters", "numbers", "signs", "spaces")


@functools.cache
def _between_words() -> re.Pattern:
    letters, numbers, signs, spaces = (_classes()[kind] for kind in _KINDS)
    return re.compile(
        f"(?<=[{letters}{numbers}{signs}])[{spaces}]|(?<=[{letters}])[{numbers}{signs}]|"
        f"(?<=[{numbers}])[{letters}{signs}]|(?<=[{signs}])(?<!')[{letters}]|(?<=[{signs}])[{numbers}]|"
        # The last white space before another character stands with that or alone.
        f"(?<=[{spaces}])[{spaces}](?=[{letters}{numbers}{signs}])"
    )


@functools.cache
def _runs() -> dict[str, re.Pattern]:
    return {kind: re.compile(f"[{characters}]+") for kind, characters in _classes().items()}


@functools.cache
def _classes() -> dict[str, str]:
    """What stands between the brackets of an expression for each kind. Takes half a second, once."""
    then = unicodedata.ucd_3_2_0.category
    ranges: dict[str, list[list[int]]] = {kind: [] for kind in _KINDS}
    space = re.compile(f"[{_SPACES}\x1c-\x1f\u180e]")
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        if category in ("Cn", "Co", "Cs") or category != then(character) or space.match(character):
            continue
        found = ranges[{"L": "letters", "N": "numbers"}.get(category[0], "signs")]
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    classes = {
        kind: "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in pairs) for kind, pairs in ranges.items()
    }
    return {**classes, "spaces": _SPACES}
