"""Rows of local files: every format and compression, what a document is, and files that are damaged."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from dfm_jax.data import corpora
from dfm_jax.data.readers import text
from dfm_jax.data.rows import Fault, Row, Rules
from dfm_jax.data.sources import local
from dfm_jax.data.tokenizers import pieces
from dfm_jax.runtime.errors import UsageError, WorldError

PLAIN = Rules()
TEXTS = ["first", "naïve 漢字\nsecond line", "", "<|endoftext|> is text"]


def rows(path, rules=PLAIN, skip=0):
    """The rows that a preparation gets which stops at the first fault."""
    files = local.find(str(path), "data.train = x").paths
    found = [row for unit in local.units(files, rules, "data.train = x") for row in unit.rows(skip)]
    for row in found:
        if isinstance(row, Fault):
            raise row.error
    return found


def texts(*args, **kwargs):
    return [row.text if row else None for row in rows(*args, **kwargs)]


def compress(data, suffix):
    return {"": lambda d: d, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix](data)


def write_jsonl(path, values, column="text", suffix=""):
    data = "".join(json.dumps({"id": 1, column: v}) + "\n" for v in values).encode()
    path.write_bytes(compress(data, suffix))
    return path


def write_parquet(path, values, column="text", kind=None, **kwargs):
    table = pyarrow.table(
        {
            "id": list(range(len(values))),
            column: pyarrow.array(values, kind or pyarrow.string()),
            "score": [0.5] * len(values),
        }
    )
    pyarrow.parquet.write_table(table, path, **kwargs)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl(tmp_path, suffix):
    path = write_jsonl(tmp_path / f"a.jsonl{suffix}", [*TEXTS, None], suffix=suffix)
    assert texts(path) == [*TEXTS, None]
    assert texts(path, skip=2) == [*TEXTS[2:], None]


@pytest.mark.parametrize(
    "kind",
    [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())],
    ids=str,
)
def test_parquet_with_extra_columns(tmp_path, kind):
    path = write_parquet(tmp_path / "a.parquet", [*TEXTS, None], kind=kind, row_group_size=2)
    assert texts(path) == [*TEXTS, None]
    assert texts(path, skip=3) == [*TEXTS[3:], None]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_txt_is_one_document_or_one_a_line(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress("\ufeffone\r\n\ntwo é".encode(), suffix))
    assert rows(path) == [Row("one\r\n\ntwo é")]
    assert texts(path, Rules(documents="lines")) == ["one", "", "two é"]


def test_a_line_of_wikitext_keeps_its_line_feed_unless_blank(tmp_path):
    path = tmp_path / "a.raw"
    path.write_text(" = A = \n \n text \n")
    assert texts(path, corpora.NAMED["wikitext103"]) == [" = A = \n", "", " text \n"]


def test_a_long_txt_comes_in_pieces_of_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_CHUNK", 1000)
    monkeypatch.setattr(pieces.split_stream, "__defaults__", (1000,))
    whole = "".join(f"word{i} é\n" for i in range(2000))
    (tmp_path / "a.txt").write_text(whole)
    found = rows(tmp_path / "a.txt")
    assert len(found) > 10
    assert "".join(row.text for row in found) == whole
    assert [row.end for row in found] == [False] * (len(found) - 1) + [True]


def test_folder_and_glob_are_sorted_and_leave_out_what_is_no_text(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden/d.txt", "e.png"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.txt", "b.txt", "sub/c.txt"]
    assert texts(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert texts(tmp_path / "**" / "c.txt") == ["sub/c.txt"]
    with pytest.raises(WorldError, match=r"data\.train = x: no file there: expected files that end in \.txt"):
        rows(tmp_path / "*.md")


def test_small_files_share_a_unit_and_large_ones_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "UNIT_BYTES", 10)
    for i, size in enumerate([4, 4, 4, 20, 3]):
        (tmp_path / f"{i}.txt").write_text("x" * size)
    units = local.units(local.find(str(tmp_path), "").paths, Rules(), "")
    assert [unit.size for unit in units] == [12, 20, 3]
    for unit in units:
        list(unit.rows(0))
        assert unit.fraction() == 1.0


def test_a_large_parquet_file_is_divided_between_row_groups(tmp_path, monkeypatch):
    values = [f"text {i}" for i in range(50)]
    path = write_parquet(tmp_path / "a.parquet", values, row_group_size=4)
    monkeypatch.setattr(local, "UNIT_BYTES", path.stat().st_size // 5)
    units = local.units([path], PLAIN, "")
    assert [unit.name for unit in units[:2]] == ["a.parquet, row groups 0-1", "a.parquet, row groups 2-4"]
    assert len(units) == 5
    assert [row.text for unit in units for row in unit.rows(0)] == values
    assert [row.text for row in units[1].rows(11)] == ["text 19"]
    assert all(unit.fraction() == 1.0 for unit in units)


def test_invalid_utf8_is_replaced_and_said(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ok \xff\xfe \xc3")
    assert rows(tmp_path / "a.txt") == [Row("ok \ufffd\ufffd \ufffd", True, True)]
    (tmp_path / "b.txt").write_text("a replacement character \ufffd of one's own\nfine\n")
    assert not any(row.repaired for row in rows(tmp_path / "b.txt"))
    (tmp_path / "c.txt").write_bytes(b"fine\nbad \xe9\n")
    assert rows(tmp_path / "c.txt", Rules(documents="lines")) == [Row("fine"), Row("bad \ufffd", True, True)]
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "lone \\ud800 surrogate"}\n{"text": "\xff"}\n')
    assert rows(tmp_path / "d.jsonl") == [Row("lone \ufffd surrogate", True, True), Row("\ufffd", True, True)]
    bad = pyarrow.array([b"fine", b"bad \xff", None]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "e.parquet")
    assert rows(tmp_path / "e.parquet") == [Row("fine"), Row("bad \ufffd", True, True), None]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_missing_column_lists_those_there_are(tmp_path, name):
    write = write_jsonl if name.endswith("jsonl") else write_parquet
    path = write(tmp_path / name, ["x"], column="content")
    with pytest.raises(
        UsageError, match=r"data\.train = x: no column text in .*expected :column= one of .*id.*content"
    ):
        rows(path)
    assert texts(path, Rules(column="content")) == ["x"]


def test_a_column_of_numbers_is_no_text(tmp_path):
    with pytest.raises(UsageError, match="column id holds int64"):
        rows(write_parquet(tmp_path / "a.parquet", ["x"]), Rules(column="id"))
    with pytest.raises(UsageError, match=r"column id at .*a\.jsonl:1 is no text"):
        rows(write_jsonl(tmp_path / "a.jsonl", ["x"]), Rules(column="id"))


@pytest.mark.parametrize("line", ["{", "[1]", "12"])
def test_damaged_jsonl_names_the_line(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n' + line + "\n")
    with pytest.raises(WorldError, match=r"a\.jsonl:3: not "):
        rows(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("damage", ["truncated", "noise", "empty"])
def test_damaged_file_is_named(tmp_path, name, damage):
    path = tmp_path / name
    values = [f"text {i * 7919}" for i in range(1000)]
    if name.endswith("parquet"):
        write_parquet(path, values)
    else:
        write_jsonl(path, values, suffix=path.suffix)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "noise": b"noise" * 100, "empty": b""}[damage])
    if damage == "empty" and not name.endswith("parquet"):
        assert rows(path) == []
        return
    with pytest.raises(WorldError, match=rf"{name}: cannot be read as \{path.suffixes[0]}"):
        rows(path)


def test_a_zst_file_of_several_frames(tmp_path):
    data = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(data) + zstandard.compress(data))
    assert texts(path) == TEXTS + TEXTS
