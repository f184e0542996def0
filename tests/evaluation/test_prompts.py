"""Prompts with gaps."""

import numpy as np
import pytest

from dfm_jax.data.tokenizers import get_tokenizer
from dfm_jax.evaluation.prompts import parse_prompt
from dfm_jax.runtime.errors import UsageError

BYTES = get_tokenizer("bytes")


class Words:
    """A token is a word with the blank before it; a blank alone is token 0."""

    name, vocab_size, eos_id = "words", 100, 99

    def encode_batch(self, texts):
        return [
            np.asarray([len(word) for word in text.split(" ") if word] + [0] * text.endswith(" ")) for text in texts
        ]


def shape(prompt) -> str:
    """The prompt's letters, with `.` where it is free."""
    return "".join(chr(t) if f else "." for t, f in zip(prompt.tokens, prompt.fixed, strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Once", "Once........"),
        ("On<gap:3>ce", "On...ce....."),
        ("On<gap>ce", "On........ce"),
        ("<gap>end", ".........end"),
        ("a<gap:2>b<gap>c<gap:1>d", "a..b.....c.d"),
        ("exactly this", "exactly this"),
        ("<gap:12>", "............"),
        ("", "............"),
    ],
)
def test_gaps(text, expected):
    assert shape(parse_prompt(text, BYTES, 12)) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a<gap>b<gap>c", "one <gap> without a size"),
        ("a<gap:0>b", "one token or more"),
        ("a<gap:-1>b", "<gap:-1>: expected gaps of one token or more"),
        ("a<gap:>b", "one token or more"),
        ("a<gap:x>b", "one token or more"),
        ("a\udcffb", "UTF-8"),
        ("abcdefghijkl<gap:1>", "13 tokens: expected at most 12"),
        ("abcdefghijkl<gap>", "13 tokens: expected at most 12"),
    ],
)
def test_what_cannot_be_is_refused(text, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse_prompt(text, BYTES, 12)


def test_the_blank_before_a_gap_is_left_to_the_model():
    prompt = parse_prompt("Once upon <gap:2> ever after. ", Words(), 8)
    np.testing.assert_array_equal(prompt.tokens, [4, 4, 0, 0, 4, 6, 0, 0])
    np.testing.assert_array_equal(prompt.fixed, [1, 1, 0, 0, 1, 1, 0, 0])
    assert shape(parse_prompt("a <gap:1>b", BYTES, 4)) == "a .b"
