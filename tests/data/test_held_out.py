"""Held-out text: the same whatever files are called, never trained on, and nothing lost."""

import json
import random

import pytest

from dfm_jax.data import open_stream, prepare
from dfm_jax.data.rows import Row, Unit
from dfm_jax.data.sources import held_out
from dfm_jax.data.tokenizers import get_tokenizer
from dfm_jax.runtime.errors import UsageError, WorldError

BYTES = get_tokenizer("bytes")
WORDS = ["time", "noise", "path", "token", "mask", "law", "step", "rate", "kernel", "bound", "text", "score", "model"]


def paragraphs(seed: int, count: int) -> str:
    draw = random.Random(seed)
    return "\n\n".join(" ".join(draw.choices(WORDS, k=60)) for _ in range(count))


def both(folder, tmp_path, share=0.2, tokenizer=BYTES, name="cache"):
    """The texts that are trained on, and that are held out."""
    found = []
    for split in ("train", "valid"):
        made = prepare(str(folder), split, tokenizer, tmp_path / name, held_out=share)
        stream = open_stream(made)
        text = get_tokenizer(stream.manifest.tokenizer).decode(stream.read(0, stream.num_tokens))
        found.append([part for part in text.split("<|endoftext|>") if part])
    return found


def write(folder, texts):
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_pieces_are_divided_and_none_is_lost(tmp_path):
    texts = {f"{i}.txt": paragraphs(i, 400) for i in range(3)}
    train, valid = both(write(tmp_path / "text", texts), tmp_path)
    assert sum(map(len, train)) + sum(map(len, valid)) == sum(map(len, texts.values()))
    assert 0.05 < sum(map(len, valid)) / sum(map(len, texts.values())) < 0.4
    whole = "|".join(texts.values())
    for part in train + valid:
        assert part in whole
    for part in valid:
        assert not any(part in other for other in train)
        assert part.endswith("\n\n") or any(text.endswith(part) for text in texts.values())


def test_the_split_is_the_same_under_other_names_orders_and_company(tmp_path):
    texts = {f"{i}.txt": paragraphs(i, 400) for i in range(3)}
    _, valid = both(write(tmp_path / "one", texts), tmp_path)
    renamed = {f"z{9 - i}.raw": text for i, text in enumerate(texts.values())}
    _, again = both(write(tmp_path / "two", renamed), tmp_path)
    assert sorted(valid) == sorted(again)
    train, more = both(write(tmp_path / "three", texts | {"a.txt": paragraphs(7, 100)}), tmp_path)
    assert set(valid) < set(more) and not set(valid) & set(train)


def test_documents_where_there_are_a_hundred(tmp_path):
    texts = {f"{i}.txt": paragraphs(i, 2) for i in range(150)}
    train, valid = both(write(tmp_path / "text", texts), tmp_path)
    assert sorted(train + valid) == sorted(texts.values()) and 15 < len(valid) < 50
    del texts["3.txt"]
    train_less, valid_less = both(write(tmp_path / "less", texts), tmp_path)
    assert set(train_less) <= set(train) and set(valid_less) <= set(valid)


def test_tokens_do_not_depend_on_how_a_long_document_is_read(tmp_path, monkeypatch):
    text = paragraphs(1, 300)
    train, valid = both(write(tmp_path / "a", {"a.txt": text}), tmp_path)
    monkeypatch.setattr("dfm_jax.data.readers.text._CHUNK", 1000)
    monkeypatch.setattr(held_out, "_ROW", 3000)
    assert both(tmp_path / "a", tmp_path, name="other") == [train, valid]


@pytest.mark.parametrize("text", ["x" * 20000, "one line of words and no more\n" * 1000 + "end", "short"])
def test_pieces_of_any_text_give_it_back(text):
    pieces = [piece for piece, _ in held_out._pieces(iter([Row(text[:7000], False), Row(text[7000:], True)]))]
    assert "".join(pieces) == text and max(map(len, pieces)) <= held_out.LONGEST


def test_something_is_held_out_and_something_stays_whatever_the_share():
    class Part:
        name, size, key = "text", 1, ""

        def fraction(self):
            return 0.0

        def rows(self, skip, cut):
            return iter([Row(paragraphs(5, 30))])

    for share in (1e-6, 0.999999):
        unit = Unit([Part()])
        rule = held_out.find_rule([unit], share, "data.train = text")
        sides = [rule.holds_out(piece) for piece, _ in held_out._pieces(unit.rows())]
        assert any(sides) and not all(sides)


def test_of_a_text_that_repeats_itself_most_is_trained_on(tmp_path):
    for end in ("x", "yz", "the end"):
        (tmp_path / f"{end}.txt").write_text("again and again\n\n" * 4096 + end)
        train, valid = both(tmp_path / f"{end}.txt", tmp_path)
        assert 0 < sum(map(len, valid)) < sum(map(len, train))


@pytest.mark.parametrize("text", ["a short text", "again and again\n\n" * 241 * 9])
def test_too_little_text_is_said(tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(WorldError, match=r"data.train = .*text.txt: too little text.*expected more text, or --config"):
        prepare(str(tmp_path / "text.txt"), "train", BYTES, tmp_path / "cache", held_out=0.05, field="data.train")


def test_a_short_rest_alone_is_not_the_held_out_text(tmp_path):
    # A rest of a few characters with a hash below the share, beside twenty pieces of which none has one.
    long = next(
        text
        for text in (paragraphs(seed, 260) for seed in range(200))
        if not any(held_out.place(piece) < 0.05 for piece, _ in held_out._pieces(iter([Row(text)])))
    )
    short = next(text for text in (f"a line, {i}" for i in range(1000)) if held_out.place(text) < 0.05)
    train, valid = both(write(tmp_path / "text", {"a.txt": long, "b.txt": short}), tmp_path, share=0.05)
    assert short in valid and 2048 <= sum(map(len, valid)) <= 8192 and sum(map(len, train)) > 0.8 * len(long)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (dict.fromkeys(("a.txt", "b.txt"), ""), r"no text in it \(2 rows are empty\)"),
        ({"a.txt": "\0\1" * 999}, "a.txt: cannot be read as .txt: it holds NULs"),
        ({f"{i}.txt": "the same text" for i in range(150)}, "too little text"),
    ],
)
def test_no_text_is_said_as_what_it_is(tmp_path, text, line):
    with pytest.raises(WorldError, match=line):
        prepare(str(write(tmp_path / "text", text)), "train", BYTES, tmp_path / "cache", held_out=0.05)


def test_of_two_texts_many_times_one_is_trained_on(tmp_path):
    # By their hashes both would be held out.
    first, second = [text for text in (f"text {i}" for i in range(99)) if held_out.place(text) < 0.2][:2]
    made = write(tmp_path / "text", {f"{i}.txt": (first, second)[i % 2] for i in range(120)})
    train, valid = both(made, tmp_path)
    assert len(set(train)) == len(set(valid)) == 1 and set(train) != set(valid)


def test_tokens_that_are_made_already_are_not_divided(tmp_path):
    (tmp_path / "text.txt").write_text(paragraphs(1, 50))
    made = prepare(str(tmp_path / "text.txt"), "train", BYTES, tmp_path / "cache")
    with pytest.raises(UsageError, match=r"made of tokens already.*--config.data.valid=TEXT"):
        prepare(str(made), "train", BYTES, tmp_path / "cache", held_out=0.05)


@pytest.mark.parametrize("count", [2, 30, 300])
def test_a_record_is_whole_on_one_side(tmp_path, count):
    rows = [{"q": f"{i} of {count}: ", "a": "yes\n\n" * 3000 if i == 1 else "no"} for i in range(count)]
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sides = []
    for split in ("train", "valid"):
        made = prepare(f"{file}:prompt=q:response=a", split, BYTES, tmp_path / "cache", held_out=0.2)
        records = open_stream(made).blocks(20_000)
        found = [(bytes(r[: records.given(i)].tolist()).decode(), records.counted(i)) for i, r in enumerate(records)]
        sides.append(found)
    expected = sorted((row["q"], len(row["a"]) + 1) for row in rows)
    assert sorted(sides[0] + sides[1]) == expected and all(sides)
    assert count < 30 or 0.05 < len(sides[1]) / count < 0.4


def test_records_that_cannot_be_told_apart_are_one_line(tmp_path):
    file = tmp_path / "chat.jsonl"
    file.write_text('{"q": "same: ", "a": "x"}\n{"q": "same: ", "a": "y"}\n')
    with pytest.raises(WorldError, match="not two records with different prompts, to hold one out: expected more"):
        prepare(f"{file}:prompt=q:response=a", "valid", BYTES, tmp_path / "cache", held_out=0.2)
