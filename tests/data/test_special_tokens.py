"""Marks such as <|endoftext|> in a text: text, or the token."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_jax.data import get_tokenizer, marked, open_stream, prepare
from dfm_jax.data.tokenizers.byte import ByteTokenizer
from dfm_jax.data.tokenizers.pieces import split_long
from dfm_jax.evaluation.prompts import parse_prompt
from dfm_jax.runtime.errors import UsageError, WorldError

BYTES = ByteTokenizer()
MARK = "<|endoftext|>"


def test_marks_are_text_unless_they_are_parsed(tmp_path):
    (tmp_path / "a.txt").write_text(f"one{MARK}two")
    text = open_stream(prepare(str(tmp_path / "a.txt"), "train", "bytes", tmp_path / "c"))
    parsed = open_stream(prepare(str(tmp_path / "a.txt"), "train", "bytes", tmp_path / "c", special="parse"))
    assert text.read(0, text.num_tokens).tolist() == [*f"one{MARK}two".encode(), 256]
    assert parsed.read(0, parsed.num_tokens).tolist() == [*b"one", 256, *b"two", 256]
    assert (text.manifest.special, parsed.manifest.special) == ("text", "parse")
    with pytest.raises(WorldError, match=r"made with data.special = parse: expected text"):
        prepare(str(parsed.folder), "train", "bytes", tmp_path / "c")
    with pytest.raises(UsageError, match=r"data.special = some: expected text, parse"):
        prepare(str(tmp_path / "a.txt"), "train", "bytes", tmp_path / "c", special="some")


def test_tokens_of_one_kind_are_not_taken_for_the_other(tmp_path):
    """One of two files changes, and the other's tokens are copied from a folder of the same kind alone."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}{MARK}" * 5)
    prepare(f"{tmp_path}/*.txt", "train", "bytes", tmp_path / "c")
    (tmp_path / "b.txt").write_text("other")
    parsed = open_stream(prepare(f"{tmp_path}/*.txt", "train", "bytes", tmp_path / "c", special="parse"))
    assert parsed.read(0, 4).tolist() == [97, 256, 97, 256]


@given(
    st.lists(st.sampled_from(["<|endoftext|>", "<|endof", "text|>", "<", "a", " ", "|>"]), max_size=40).map("".join),
    st.integers(3, 30),
)
def test_a_long_text_is_cut_where_no_mark_is(text, size):
    tokenizer = marked(BYTES, "parse")
    whole = tokenizer.encode_batch([text])[0]
    pieces = split_long(text, tokenizer.cut, size)
    assert "".join(pieces) == text
    np.testing.assert_array_equal(np.concatenate(tokenizer.encode_batch(pieces)), whole)


@given(
    st.lists(
        st.sampled_from(["<|endoftext|>", "<|endof", "text|>", "<", "word", " ", "\n", "3", "|>"]), max_size=30
    ).map("".join)
)
def test_gpt2_is_cut_where_no_mark_is(text):
    try:
        tokenizer = marked(get_tokenizer("gpt2"), "parse")
    except WorldError as error:
        pytest.skip(str(error))
    whole = tokenizer.encode_batch([text])[0]
    pieces = split_long(text, tokenizer.cut, 7)
    np.testing.assert_array_equal(np.concatenate(tokenizer.encode_batch(pieces)), whole)
    assert tokenizer.decode(whole) == text


def test_a_prompt_is_read_as_the_text_was():
    assert parse_prompt(f"a{MARK}", marked(BYTES, "parse"), 8).tokens[:2].tolist() == [97, 256]
    assert parse_prompt("a<|endo", marked(BYTES, "text"), 8).fixed.sum() == 7


def test_records_with_marks(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"q": f"one{MARK}", "a": f"two{MARK}three"}))
    spec = f"{tmp_path}/a.jsonl:prompt=q:response=a"
    blocks = open_stream(prepare(spec, "train", "bytes", tmp_path / "c", special="parse")).blocks(16)
    assert (blocks.given(0), blocks.counted(0)) == (4, 10)
    assert blocks[0].tolist() == [*b"one", 256, *b"two", 256, *b"three", 256, 256, 256]
