"""Prompts: text with gaps, as token ids and the positions that are fixed."""

import re
from typing import NamedTuple

import numpy as np

from dfm_jax.data.tokenizers import CHARACTERS, Tokenizer
from dfm_jax.runtime.errors import UsageError

GAP = re.compile(r"<gap(?::([^<>]*))?>")


class Prompt(NamedTuple):
    """tokens: (L,) int32, 0 at free positions. fixed: (L,) bool, True at given positions."""

    tokens: np.ndarray
    fixed: np.ndarray


def parse_prompt(text: str, tokenizer: Tokenizer, length: int, *, special: bool = False) -> Prompt:
    """The prompt that `text` describes in a sequence of `length` tokens.

    `<gap:40>` stands for 40 tokens to generate, and `<gap>` for all tokens that are left. Without `<gap>`, the tokens
    that are left follow the text. So `Once upon a time` is a beginning and `<gap> the end.` an end.
    `Once upon <gap:40> ever after.` has a gap inside and goes on after the text.

    special: whether the names of the tokenizer's special tokens, such as `<|endoftext|>` or `[MASK]`, stand for them.
    By default they are text like any other.

    A token of GPT-2 begins with the space before its word. The space before a gap is therefore generated too.

    Raises:
        UsageError: more than `length` tokens, a gap whose size is not a number above 0, two gaps without a size, or
            text that is not UTF-8.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):  # what Python makes of other bytes in a command
        raise UsageError(f"prompt = {text!r}: expected text in UTF-8")
    pieces: list[np.ndarray | int | None] = []
    start, free = 0, 0
    for gap in GAP.finditer(text):
        pieces.append(_encode(text[start : gap.start()], tokenizer, special, before_gap=True))
        if gap[1] is not None and not (gap[1].isdecimal() and int(gap[1]) > 0):
            raise UsageError(f"prompt = {text!r}: {gap[0]}: expected gaps of one token or more, as <gap:40>")
        pieces.append(int(gap[1]) if gap[1] else None)
        free += gap[1] is None
        start = gap.end()
    pieces.append(_encode(text[start:], tokenizer, special, before_gap=free == 0))
    if free > 1:
        raise UsageError(f"prompt = {text!r}: expected one <gap> without a size")
    known = sum(len(p) if isinstance(p, np.ndarray) else p or 0 for p in pieces)
    if known + free > length:
        raise UsageError(f"prompt = {text!r}: {known + free} tokens: expected at most {length}")

    tokens, fixed, at = np.zeros(length, np.int32), np.zeros(length, bool), 0
    for piece in pieces:
        if isinstance(piece, np.ndarray):
            tokens[at : at + len(piece)] = piece
            fixed[at : at + len(piece)] = True
            at += len(piece)
        else:
            at += length - known if piece is None else piece
    return Prompt(tokens, fixed)


def _encode(text: str, tokenizer: Tokenizer, special: bool, *, before_gap: bool) -> np.ndarray:
    if before_gap and tokenizer.name not in CHARACTERS:
        text = text.removesuffix(" ")
    ids = tokenizer.encode_special(text) if special else tokenizer.encode_batch([text])[0]
    return np.asarray(ids, np.int32)
