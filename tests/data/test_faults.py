"""What cannot be read: it stops a preparation, or is skipped, counted and named, up to a largest share."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from dfm_jax.data import get_tokenizer, open_stream, prepare, summary
from dfm_jax.data.sources import local
from dfm_jax.runtime.errors import UsageError, WorldError

BYTES = get_tokenizer("bytes")


def documents(folder):
    stream = open_stream(folder)
    return BYTES.decode(stream.read(0, stream.num_tokens)).split("<|endoftext|>")[:-1]


def line(text):
    return json.dumps({"text": text}) + "\n"


BAD = {
    "no JSON": "{oops\n",
    "deep": '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n",
    "no object": "[1, 2]\n",
    "no such key": '{"body": "x"}\n',
    "a number": '{"text": 3}\n',
    "a huge number": '{"text": ' + "9" * 10_000 + "}\n",
    "NULs": "\x00\x00\n",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_stops_in_one_line_or_is_skipped_and_named(tmp_path, kind):
    path = tmp_path / "a.jsonl"
    # NULs at the beginning of a file make it no text at all.
    path.write_text(line("one " * 30_000) + line("two") + BAD[kind] + line("three"))
    with pytest.raises((WorldError, UsageError), match=r"a\.jsonl:3") as caught:
        prepare(str(path), "train", BYTES, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    told = []
    made = prepare(str(path), "train", BYTES, tmp_path / "cache", on_error="skip", note=told.append)
    assert documents(made)[1:] == ["two", "three"]
    manifest = open_stream(made).manifest
    assert (manifest.bad, manifest.lost, manifest.num_documents) == (1, 0, 3)
    assert "a.jsonl:3" in manifest.places[0]
    assert len(told) == 1 and "1 bad rows" in told[0] and "a.jsonl:3" in told[0]
    assert "left out 1 bad rows" in summary(made)
    with pytest.raises(WorldError, match=r"made without 1 bad rows, the first: .*expected data\.on_error=skip"):
        prepare(str(path), "train", BYTES, tmp_path / "cache")


def test_files_that_cannot_be_read_are_skipped_and_the_others_prepared(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02d}.txt").write_text(f"text {i}")
    (folder / "20.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "21.jsonl.gz").write_bytes(gzip.compress(line("x").encode() * 1000)[:40])
    (folder / "22.parquet").write_bytes(b"")
    (folder / "23.jsonl").write_text("")
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.nulls(2)}), folder / "24.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), folder / "25.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), folder / "26.parquet")
    (folder / "30.txt").write_text("last")
    with pytest.raises(WorldError, match=r"20\.txt: cannot be read as \.txt: a PNG image"):
        prepare(str(folder), "train", BYTES, tmp_path / "cache")
    made = prepare(str(folder), "train", BYTES, tmp_path / "cache", on_error="skip")
    assert documents(made) == [f"text {i}" for i in range(12)] + ["last"]
    manifest = open_stream(made).manifest
    assert (manifest.bad, manifest.lost, manifest.skipped) == (0, 4, 2)
    assert [name for name in ("20.txt", "21.jsonl.gz", "22.parquet", "25.parquet")
            if any(name in place for place in manifest.places)] == [
        "20.txt", "21.jsonl.gz", "22.parquet", "25.parquet"
    ]  # fmt: skip


def test_a_document_that_breaks_off_has_an_end(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"some words\n" * 300_000 + bytes(1 << 20))
    (tmp_path / "b.txt").write_text("next")
    (tmp_path / "c.txt").write_text("more")
    made = prepare(str(tmp_path / "*.txt"), "train", BYTES, tmp_path / "cache", on_error="skip")
    found = documents(made)
    assert len(found) == 3 and found[1:] == ["next", "more"]
    assert ("some words\n" * 300_000).startswith(found[0])


def test_more_than_the_largest_share_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(line("good") * 7 + "{\n" * 3)
    refused = r"data\.train = .*: 3 of 10 rows cannot be read, more than data\.max_error_share = 0\.2; .*a\.jsonl:8"
    options = {"on_error": "skip", "cache_dir": tmp_path / "cache"}
    with pytest.raises(WorldError, match=refused):
        prepare(str(tmp_path / "a.jsonl"), "train", BYTES, max_error_share=0.2, **options)
    assert len(documents(prepare(str(tmp_path / "a.jsonl"), "train", BYTES, max_error_share=0.3, **options))) == 7


def test_the_wrong_kind_of_corpus_is_refused_by_default_whatever_is_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_text("these are\nno objects\nbut text\n")
    with pytest.raises(WorldError, match="3 of 3 rows cannot be read"):
        prepare(str(tmp_path / "a.jsonl"), "train", BYTES, tmp_path / "cache", on_error="skip")


def test_places_are_counted_once_over_kills_and_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "UNIT_BYTES", 1)
    (tmp_path / "in").mkdir()
    for i in range(4):
        (tmp_path / "in" / f"{i}.jsonl").write_text(line(f"text {i}") + "{\n" + line("more"))
    options = {"on_error": "skip", "shard_bytes": 16}
    whole = prepare(str(tmp_path / "in"), "train", BYTES, tmp_path / "whole", **options)
    for i in (3, 0, 2, 1):
        parts = prepare(str(tmp_path / "in"), "train", BYTES, tmp_path / "parts", shard=(i, 4), **options)
    for folder in (whole, parts):
        manifest = open_stream(folder).manifest
        assert manifest.bad == 4
        assert [f"{i}.jsonl:2" in place for i, place in enumerate(manifest.places)] == [True] * 4
    assert open_stream(whole).manifest == open_stream(parts).manifest


def test_usage(tmp_path):
    with pytest.raises(UsageError, match=r"data\.on_error = ignore: expected stop, skip"):
        prepare("pydocs", "train", BYTES, tmp_path, on_error="ignore")
