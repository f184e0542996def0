"""A tokenizer with one id less, or with ids that mean no text."""

import pytest

from dfm_jax.data import get_tokenizer, marked, vocabulary_size
from dfm_jax.runtime.errors import UsageError, WorldError


def test_an_id_taken_out_moves_the_later_ones_down():
    tokenizer = get_tokenizer("bytes:without=98")
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_id) == ("bytes:without=98", 256, 255)
    assert vocabulary_size("bytes:without=98") == 256
    (ids,) = tokenizer.encode_batch(["acz"])
    assert ids.tolist() == [97, 98, 121]
    assert tokenizer.decode([*ids, 255]) == "acz<|endoftext|>"
    assert tokenizer.decode_bytes([*ids, 255]) == b"acz"
    with pytest.raises(WorldError, match="expected a text without the token 98"):
        tokenizer.encode_batch(["abc"])
    with pytest.raises(ValueError, match="token ids"):
        tokenizer.decode([256])


def test_added_ids_are_shown_and_stand_for_no_bytes():
    tokenizer = get_tokenizer("bytes:size=260")
    assert (tokenizer.vocab_size, tokenizer.eos_id, vocabulary_size("bytes:size=260")) == (260, 256, 260)
    assert tokenizer.encode_batch(["ab"])[0].tolist() == [97, 98]
    assert tokenizer.decode([257, 97, 259, 258, 98]) == "[PAD]a[PAD][PAD]b"
    assert tokenizer.decode_bytes([257, 97, 259, 256]) == b"a"


def test_changes_may_follow_each_other():
    tokenizer = get_tokenizer("ids:5:size=8:without=6")
    assert tokenizer.vocab_size == 7 and tokenizer.decode([1, 4]) == "1 4"


@pytest.mark.parametrize("name, part", [
    ("bytes:without=257", "expected an id from 0 to 256"),
    ("bytes:size=256", "expected 257 or more"),
    ("bytes:without=256", "expected another id than 256, the end of a text"),
    ("bytes:without=01", "expected one of"),
])  # fmt: skip
def test_a_change_that_means_nothing_is_refused(name, part):
    with pytest.raises(UsageError, match=part):
        get_tokenizer(name)


def test_marks_have_the_ids_of_the_changed_one():
    tokenizer = marked(get_tokenizer("bytes:without=98"), "parse")
    assert tokenizer.encode_batch(["ac<|endoftext|>"])[0].tolist() == [97, 98, 255]
    assert get_tokenizer("bytes:without=98").marks == {"<|endoftext|>": 255}
