"""Tokenizers: bytes and GPT-2 BPE, special tokens as ordinary text, and how long texts are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_jax.data import get_tokenizer, open_stream, prepare
from dfm_jax.data.tokenizers import gpt2 as gpt2_module
from dfm_jax.runtime.errors import UsageError, WorldError


@given(st.lists(st.text(max_size=40), max_size=5))
def test_bytes_round_trip(texts):
    tokenizer = get_tokenizer("bytes")
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert ids.size == 0 or ids.max() < tokenizer.eos_id


def test_bytes_shows_the_end_of_a_document_but_does_not_count_it():
    tokenizer = get_tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (257, 256)
    ids = [104, 105, tokenizer.eos_id, 33]
    assert tokenizer.decode(ids) == "hi<|endoftext|>!"
    assert tokenizer.decode_bytes(ids) == b"hi!"
    assert tokenizer.decode([0xC3]) == "\ufffd"


@pytest.mark.parametrize("ids", [[257], [-1], np.array([3, 300])])
def test_ids_outside_the_vocabulary(ids):
    with pytest.raises(ValueError, match="expected 0 to 256"):
        get_tokenizer("bytes").decode(ids)


def test_unknown_name():
    with pytest.raises(UsageError, match=r"tokenizer\.name = gpt3: expected one of bytes, gpt2"):
        get_tokenizer("gpt3")


def test_without_tables_and_network_the_error_names_the_way_out(monkeypatch):
    import tiktoken

    def no_network(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    gpt2_module._load.cache_clear()
    with pytest.raises(WorldError, match="TIKTOKEN_CACHE_DIR") as caught:
        get_tokenizer("gpt2")
    assert "\n" not in str(caught.value)


def test_gpt2(gpt2):
    assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)
    (ids,) = gpt2.encode_batch(["Hello world"])
    assert ids.tolist() == [15496, 995]
    assert gpt2.decode([15496, gpt2.eos_id]) == "Hello<|endoftext|>"
    assert gpt2.decode_bytes([15496, gpt2.eos_id]) == b"Hello"


def test_gpt2_takes_a_special_token_in_a_text_for_ordinary_text(gpt2):
    (ids,) = gpt2.encode_batch(["a<|endoftext|>b"])
    assert gpt2.eos_id not in ids
    assert gpt2.decode(ids) == "a<|endoftext|>b"


TEXT = st.text(st.sampled_from("ab1é漢 \n\t\xa0\u3000\x1c.,'s<|>"), max_size=80)


def test_ids_stand_for_themselves():
    tokenizer = get_tokenizer("ids:37")
    assert tokenizer.vocab_size == 37 and tokenizer.eos_id < 0
    (ids,) = tokenizer.encode_batch(["3 14\n15"])
    assert ids.tolist() == [3, 14, 15]
    assert tokenizer.decode(ids) == "3 14 15"
    for wrong in ("37", "-1", "a"):
        with pytest.raises(WorldError, match="expected text of numbers from 0 to 36"):
            tokenizer.encode_batch([wrong])
    for name in ("ids:", "ids:0", "ids:x"):
        with pytest.raises(UsageError):
            get_tokenizer(name)


def test_a_corpus_of_ids_has_no_end_of_text(tmp_path):
    (tmp_path / "ids.txt").write_text("1 2 3\n4 5")
    stream = open_stream(prepare(str(tmp_path / "ids.txt"), "train", get_tokenizer("ids:9"), tmp_path / "cache"))
    assert stream.read(0, stream.num_tokens).tolist() == [1, 2, 3, 4, 5]
