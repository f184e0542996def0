"""Where long texts are cut: any cut gives the tokens of the whole, and the work is linear in the text."""

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm_jax.data import get_tokenizer, open_stream, prepare
from dfm_jax.data.readers import text as text_reader
from dfm_jax.data.tokenizers import gpt2_cuts, pieces, split_long

# Every kind of character that the expression of GPT-2 tells apart, those of which Unicode changed its mind, and what
# contractions are made of.
SIGNS = "ab1é漢 \n\t\r\xa0\u3000\x1c\x85\u180e.,'s<|>l vretmd🤖\u0301ก0Ⅷ½_$"
TEXT = st.lists(st.sampled_from(SIGNS), max_size=60).map("".join) | st.lists(
    st.sampled_from(["'s", "'ll", "don't", " ", "  ", "\r\n", "\n\n", "12", "x", "...", "é", "'"]), max_size=30
).map("".join)


@pytest.fixture
def short(monkeypatch):
    """Cuts within words are looked for in texts of a few thousand characters."""
    monkeypatch.setattr(gpt2_cuts, "_WINDOW", 16)
    monkeypatch.setattr(gpt2_cuts, "_LONG", 2048)


def check(tokenizer, text, size):
    """Of the pieces; returns how many there are."""
    parts = split_long(text, tokenizer.cut, size)
    assert "".join(parts) == text
    ids = np.concatenate(tokenizer.encode_batch(parts))
    np.testing.assert_array_equal(ids, tokenizer.encode_batch([text])[0])
    return len(parts)


@settings(max_examples=300)
@given(text=TEXT, size=st.integers(1, 20))
def test_cuts_between_words_change_no_token(text, size):
    check(get_tokenizer("bytes"), text, size)


def test_cuts_between_gpt2s_words_change_no_token(gpt2, short):
    @settings(max_examples=1000)
    @given(text=TEXT, size=st.integers(1, 20))
    def property_of(text, size):
        check(gpt2, text, size)

    property_of()


@pytest.mark.default_cases(20)
@pytest.mark.parametrize(
    "signs",
    ["a", "ab", "abc", "theing", "etaoinshr", "é", "éà", "漢字", "αβγ", "01", "0", "=", "-=", "...-", "'", "'.", "─"]
    + [" ", "\n", " \n", " \u3000", "\r"],
)
@pytest.mark.parametrize("first", ["", "x ", "'", " "])
def test_a_word_without_end_is_cut_and_its_tokens_are_those_of_the_whole(gpt2, short, signs, first):
    generator = random.Random(signs + first)
    for last in ("", "x", " x", "'ll", ".\n"):
        text = first + "".join(generator.choices(signs, k=12_000)) + last
        assert check(gpt2, text, 3000) >= 2


def test_every_continuation_keeps_a_cut(gpt2, short):
    """What follows is not known when a text is cut."""
    for start in ("x" * 5000, " " * 5000, "don't" + "=" * 5000, "wor"):
        place = gpt2.cut(start)
        for more in ("", "y", " ", "\n", "'s", "=", "  z", "7", "." * 300, " " * 300):
            head, rest, whole = gpt2.encode_batch([start[:place], start[place:] + more, start + more])
            np.testing.assert_array_equal(np.concatenate([head, rest]), whole)


def test_ids_are_cut_between_numbers():
    tokenizer = get_tokenizer("ids:99")
    assert check(tokenizer, " ".join(map(str, range(99))), 7) > 20


def test_a_stream_is_looked_at_twice_at_most():
    """Where there is no cut for long, each attempt has twice the text of the one before."""
    looked_at = []

    def cut(text):
        looked_at.append(len(text))
        return text.rfind("|") + 1

    text = "x" * 100_000 + "|" + "y" * 50_000
    chunks = (text[i : i + 100] for i in range(0, len(text), 100))
    assert "".join(pieces.split_stream(chunks, cut, 1000)) == text
    assert sum(looked_at) < 4 * len(text)


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
@pytest.mark.parametrize(
    "text",
    ["word\r\n" * 3000, "x" * 12_000, " " * 12_000, "漢字。" * 5000, "a,b" * 4000, "word \n\n" * 3000],
    ids=["CRLF", "one letter", "blanks", "no blanks", "commas", "blank lines"],
)
def test_a_file_has_the_tokens_of_its_text(tmp_path, request, monkeypatch, short, name, text):
    tokenizer = request.getfixturevalue("gpt2") if name == "gpt2" else get_tokenizer(name)
    monkeypatch.setattr(text_reader, "_CHUNK", 1000)
    monkeypatch.setattr(pieces.split_stream, "__defaults__", (3000,))
    (tmp_path / "a.txt").write_bytes(text.encode())
    stream = open_stream(prepare(str(tmp_path / "a.txt"), "train", tokenizer, tmp_path / "cache"))
    (ids,) = tokenizer.encode_batch([text])
    np.testing.assert_array_equal(stream.read(0, stream.num_tokens), [*ids, tokenizer.eos_id])
    assert stream.manifest.num_documents == 1


def test_the_time_of_the_reader_is_linear(tmp_path):
    """Four times the text without a blank, at most eight times the time; quadratic would be sixteen."""
    times = []
    for megabytes in (4, 16):
        (tmp_path / "a.txt").write_bytes(b"x" * (megabytes << 20))
        started = time.perf_counter()
        prepare(str(tmp_path / "a.txt"), "train", "bytes", tmp_path / str(megabytes))
        times.append(time.perf_counter() - started)
    assert times[1] < 8 * times[0] + 0.5
