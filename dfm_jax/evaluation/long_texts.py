"""Texts of any length, block after block, from a network that sees rows of L tokens.

A block is generated with the tokens before it fixed and masks after it, so the source has to be the mask. Where a text
is longer than a row, the network sees the last tokens before the block that the row holds: a Markov approximation
(mathematics.md E.5). A network whose rows all begin with an end of text keeps it at the first position.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from dfm_jax import flow
from dfm_jax.data import Tokenizer
from dfm_jax.evaluation.generation import Generator
from dfm_jax.evaluation.prompts import Prompt
from dfm_jax.runtime.errors import UsageError

MOST_TEXTS, MOST_BLOCKS = 1 << 16, 1 << 15  # text i, block n have the noise of sequence n MOST_TEXTS + i


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a text is generated.

    Attributes:
        length: of the text, in tokens, the prompt included.
        block: new tokens at a time.
        first: the token that every row begins with; -1 for none.
        stop: the token that ends a text; -1 for none.
    """

    length: int
    block: int
    first: int = -1
    stop: int = -1

    @classmethod
    def of(cls, length: int, block: int | None, row: int, masked: bool, *, first: int = -1, stop: int = -1) -> "Blocks":
        """The blocks of a text of `length` tokens from rows of `row`. block: None is half a row, or all that fits one.

        masked: whether the source is the mask.

        Raises UsageError for a size out of range, and for a source other than the mask where there are several blocks.
        """
        if length < 1:
            raise UsageError(f"length = {length}: expected 1 token or more")
        most = row if length <= row else row - 1 - (first >= 0)
        if block is None:
            block = length if length <= row else max(1, min(row // 2, most))
        if not 1 <= block <= most:
            raise UsageError(f"block = {block}: expected 1 to {most} tokens, for rows of {row}")
        if length > row and not masked:
            raise UsageError(f"length = {length}: expected at most {row}, a row of the network, or the mask source")
        if block < length and not masked:
            raise UsageError(f"block = {block}: expected {length}, the whole text, or the mask source")
        if -(-length // block) > MOST_BLOCKS:
            raise UsageError(f"length = {length}: expected at most {MOST_BLOCKS * block} in blocks of {block}")
        return cls(length, block, first, stop)


def generate(
    generator: Generator, model: Any, given: np.ndarray, blocks: Blocks, index: int = 0
) -> Iterator[tuple[np.ndarray, flow.Evaluations]]:
    """Yields the new tokens (n,) int32 of each block of text `index`, and what the model was asked for them.

    generator: of rows of min(L, `blocks.length`) tokens. given: (k,) the text's first tokens, fewer than its length.
    With a stop token the text ends at the first one that is generated, which is yielded.
    """
    row, known = generator.settings.length, np.asarray(given, np.int32)
    mask_id = generator.problem.source.mask_id
    number = 0
    while len(known) < blocks.length:
        end = min(len(known) + blocks.block, blocks.length)
        start = max(0, end - row)
        at = len(known) - start
        tokens = np.full(row, 0 if mask_id is None else mask_id, np.int32)
        fixed = np.ones(row, bool)
        tokens[:at] = known[start:]
        if start and blocks.first >= 0:
            tokens[0] = blocks.first
        tokens[at : end - start], fixed[at : end - start] = 0, False
        prompts = [Prompt(tokens, fixed)] if fixed.any() else []
        drawn = next(generator(model, 1, prompts=prompts, start=number * MOST_TEXTS + index))
        new = drawn.tokens[0, at : end - start]
        ends = np.flatnonzero(new == blocks.stop)
        if blocks.stop >= 0 and len(ends):
            yield new[: ends[0] + 1], drawn.evaluations
            return
        yield new, drawn.evaluations
        known = np.concatenate([known, new])
        number += 1


def beginning_of(prompt: Prompt, text: str) -> np.ndarray:
    """The tokens (k,) that a prompt begins with. Raises UsageError where it has gaps, or leaves nothing to generate."""
    count = int(prompt.fixed.sum())
    if not prompt.fixed[:count].all():
        raise UsageError(f"prompt = {text!r}: expected a beginning, without gaps, of a text in blocks")
    if count == len(prompt.fixed):
        raise UsageError(f"prompt = {text!r}: {count} tokens: expected fewer than length = {count}")
    return prompt.tokens[:count]


class Text:
    """One text, as an iterator of pieces that end where a block ends and a character does; joined they are the text.

    The first piece begins with the prompt. After a piece, tokens (n,) int32 are those of the text so far, the stop
    token included, and spent is what the model was asked for them (names of `flow.Evaluations`).
    """

    def __init__(
        self,
        new_tokens: Iterator[tuple[np.ndarray, flow.Evaluations]],
        tokenizer: Tokenizer,
        given: np.ndarray,
        stop: int = -1,
    ):
        self.tokens = np.asarray(given, np.int32)
        self.spent = dict.fromkeys(flow.Evaluations._fields, 0)
        self._pieces = self._read(new_tokens, tokenizer, stop)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def _read(self, new_tokens, tokenizer: Tokenizer, stop: int) -> Iterator[str]:
        shown, given = "", len(self.tokens)

        def text() -> str:
            ended = len(self.tokens) > given and self.tokens[-1] == stop
            return tokenizer.decode(self.tokens[: len(self.tokens) - ended].tolist())

        for new, evaluations in new_tokens:
            self.tokens = np.concatenate([self.tokens, new])
            for name, count in evaluations._asdict().items():
                self.spent[name] += int(count[0])
            so_far = text().rstrip("\ufffd")  # what may still become a character
            if len(so_far) > len(shown):
                yield so_far[len(shown) :]
                shown = so_far
        if rest := text()[len(shown) :]:
            yield rest
