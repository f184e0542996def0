"""The forms of rows that published networks were trained on, and what the loader says of their padding."""

import types
from typing import Any

import numpy as np
import pytest

from dfm_jax.data import eval_batches, get_tokenizer, open_stream, prepare, train_batches
from dfm_jax.data.packing import packed
from dfm_jax.runtime.errors import UsageError

DOCUMENTS = ["abc", "de", "fghijklmnop", "q"]
END = 256  # of the tokenizer 'bytes'


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "lines.txt").write_text("\n".join(DOCUMENTS))
    return open_stream(prepare(f"{folder}/lines.txt:documents=lines", "train", "bytes", folder / "data"))


def row(text: str, length: int) -> list[int]:
    inside = list(text.encode())[: length - 2]
    return [END, *inside, END, *[END] * (length - 2 - len(inside))]


def test_a_wrapped_row_is_the_stream_between_two_ends_of_text(stream):
    tokens = stream.read(0, stream.num_tokens).tolist()
    found = packed(stream, "wrapped", get_tokenizer("bytes"))
    blocks = found.blocks(6)
    assert len(blocks) == found.num_blocks(6) == len(tokens) // 4
    for i in range(len(blocks)):
        assert blocks[i].tolist() == [END, *tokens[4 * i : 4 * i + 4], END]
    with pytest.raises(IndexError):
        blocks[len(blocks)]
    batch, weights = next(eval_batches(found, length=6, batch_size=2))
    assert batch.scored is None and weights.tolist() == [1, 1]


def test_a_row_is_one_document_cut_or_padded(stream):
    found = packed(stream, "rows", get_tokenizer("bytes"))
    blocks: Any = found.blocks(8)
    assert len(blocks) == found.num_blocks(8) == len(DOCUMENTS)
    assert [blocks[i].tolist() for i in range(4)] == [row(text, 8) for text in DOCUMENTS]
    assert [blocks.scored(i) for i in range(4)] == [5, 4, 8, 3]


def test_the_batches_say_which_positions_are_padding(stream):
    found = packed(stream, "rows", get_tokenizer("bytes"))
    batches = list(eval_batches(found, length=8, batch_size=3))
    assert [batch.scored.sum(1).tolist() for batch, _ in batches] == [[5, 4, 8], [3, 0, 0]]
    assert [weights.tolist() for _, weights in batches] == [[1, 1, 1], [1, 0, 0]]
    first = next(train_batches(found, length=8, batch_size=4, seed=0))
    rows = {tuple(tokens): int(count) for tokens, count in zip(first.tokens.tolist(), first.scored.sum(1), strict=True)}
    assert rows == {tuple(row(text, 8)): min(len(text) + 2, 8) for text in DOCUMENTS}
    assert all(mask[:count].all() for mask, count in zip(first.scored, first.scored.sum(1), strict=True))


def test_a_tokenizers_own_beginning_and_padding_are_used(stream):
    own: Any = types.SimpleNamespace(eos_id=END, name="own", special={"cls": 1, "bos": 2, "pad": 0})
    assert packed(stream, "rows", own).blocks(6)[1].tolist() == [1, *b"de", END, 0, 0]
    own.special = {"bos": 2}
    assert packed(stream, "wrapped", own).blocks(4)[0].tolist() == [2, *b"ab", END]


def test_each_form_has_a_fingerprint_of_its_own(stream):
    tokenizer = get_tokenizer("bytes")
    found = {name: packed(stream, name, tokenizer).fingerprint for name in ("continuous", "wrapped", "rows")}
    assert len(set(found.values())) == 3 and found["continuous"] == stream.fingerprint


def test_what_has_no_end_of_text_has_no_such_rows(stream):
    with pytest.raises(UsageError, match=r"config.data.packing = rows: expected continuous with tokenizer ids:7"):
        packed(stream, "rows", get_tokenizer("ids:7"))
    with pytest.raises(UsageError, match=r"config.model.length = 2: expected 3 or more"):
        packed(stream, "wrapped", get_tokenizer("bytes")).blocks(2)


def test_the_ends_are_found_in_parts(stream, monkeypatch):
    from dfm_jax.data import packing

    def ends() -> np.ndarray:
        found: Any = packed(stream, "rows", get_tokenizer("bytes"))
        return found.ends

    whole = ends()
    monkeypatch.setattr(packing, "_READ", 3)
    np.testing.assert_array_equal(ends(), whole)
