"""What a file is: told by its first bytes and its name, read if it is text, refused in one line if it is none."""

import bz2
import gzip
import io
import json
import lzma
import pathlib
import pickle
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from dfm_jax.data import open_stream, prepare
from dfm_jax.data.readers import recognise
from dfm_jax.data.rows import Row, Rules
from dfm_jax.data.sources import local
from dfm_jax.runtime.errors import UsageError, WorldError

TEXT = "Hello wörld 漢字\n" * 3
LINES = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(3))
DOCUMENTS = ["document 0", "document 1", "document 2"]
PACK = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstandard.compress}


def texts(path, rules=Rules()):  # noqa: B008 (it is frozen)
    return [row.text for unit in local.units(local.find(str(path), "").paths, rules, "") for row in unit.rows()]


def archive(kind):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a.txt", TEXT)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            info = tarfile.TarInfo("a.txt")
            info.size = 3
            file.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


def parquet(values=("one", "two")):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": list(values)}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        ("a.txt.gz", "gzip"), ("a.TXT.GZ", "gzip"), ("a.txt.bz2", "bzip2"), ("a.raw.xz", "xz"), ("a.txt.Zst", "zstd"),
        ("a.txt.zstd", "zstd"), ("a.txt", "gzip"), ("a", "xz"), ("a.data", "bzip2"),
    ],
)  # fmt: skip
def test_compressed_text_is_read_whatever_its_name(tmp_path, name, packing):
    (tmp_path / name).write_bytes(PACK[packing](TEXT.encode()))
    assert texts(tmp_path / name) == [TEXT]


@pytest.mark.parametrize("packing", PACK)
def test_several_members_are_one_file_and_one_that_is_cut_off_is_an_error(tmp_path, packing):
    data = PACK[packing](b"one ") + PACK[packing](b"two")
    (tmp_path / "a.txt").write_bytes(data)
    assert texts(tmp_path / "a.txt") == ["one two"]
    (tmp_path / "b.txt").write_bytes(data[:-3])
    with pytest.raises(WorldError, match=r"b\.txt: cannot be read as \.txt: "):
        texts(tmp_path / "b.txt")


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.JSONL", "a.jsonl.gz", "a.json.gz", "a.json", "a", "a.ndjson", "a.Jsonl.BZ2"]
)
def test_json_lines_are_read_by_name_or_by_content(tmp_path, name):
    packing = {".gz": "gzip", ".bz2": "bzip2"}.get(pathlib.Path(name).suffix.lower())
    (tmp_path / name).write_bytes(PACK[packing](LINES.encode()) if packing else LINES.encode())
    assert texts(tmp_path / name) == DOCUMENTS


@pytest.mark.parametrize("name", ["a.parquet", "a.PARQUET", "a.txt", "a"])
def test_parquet_is_read_by_content(tmp_path, name):
    (tmp_path / name).write_bytes(parquet())
    assert texts(tmp_path / name) == ["one", "two"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-be"])
def test_the_mark_of_an_encoding_is_heeded(tmp_path, encoding):
    mark = "" if encoding in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff"
    (tmp_path / "a.txt").write_bytes((mark + TEXT).encode(encoding))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((mark + LINES).encode(encoding)))
    assert texts(tmp_path / "a.txt") == [TEXT]
    assert texts(tmp_path / "a.txt", Rules(documents="lines")) == ["Hello wörld 漢字"] * 3
    assert texts(tmp_path / "a.jsonl.gz") == DOCUMENTS


def test_invalid_utf_16_is_repaired_and_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes("fine ".encode("utf-16") + b"\x00\xd8" + " more".encode("utf-16-le"))
    (unit,) = local.units(local.find(str(tmp_path / "a.txt"), "").paths, Rules(), "")
    assert list(unit.rows()) == [Row("fine \ufffd more", True, True)]


NOT_TEXT = {
    "a.zip": (archive("zip"), "a zip archive"),
    "a.txt": (archive("zip"), "a zip archive"),
    "a.tar": (archive("tar"), "a tar archive"),
    "a.txt.gz": (gzip.compress(archive("tar")), "a tar archive"),
    "b.txt.gz": (gzip.compress(gzip.compress(b"x")), "compressed twice"),
    "c.txt.gz": (b"plain", "not gzip"),
    "d.parquet.gz": (gzip.compress(parquet()), "a Parquet file inside gzip"),
    "a.pdf": (b"%PDF-1.7\n", "a PDF"),
    "a.png": (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    "a.raw": (b"\xff\xd8\xff\xe0", "a JPEG image"),
    "elf.txt": (b"\x7fELF\x02\x01\x01", "a program"),
    "a.pkl": (pickle.dumps([1]), "a pickle"),
    "a.npy": (b"\x93NUMPY\x01\x00", "a .npy array"),
    "a.h5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "a.arrow": (b"ARROW1\x00\x00", "an Arrow file"),
    "a.db": (b"SQLite format 3\x00", "an SQLite database"),
    "a.lz4": (b"\x04\x22\x4d\x18", "lz4"),
    "a.csv": (b"text,n\nhello,1\n", "a table"),
    "a.TSV.gz": (gzip.compress(b"a\tb\n"), "a table"),
    "a.html": (b"<p>x</p>", "markup"),
    "page": (b"\n<!DOCTYPE html><html>", "markup"),
    "feed": (b'<?xml version="1.0"?><a/>', "markup"),
    "a.json": (b'[\n{"text": "x"}\n]', "one JSON document"),
    "dump": (b'{\n  "text": "x"\n}', "one JSON document"),
    "a.ipynb": (b"{}", "a notebook"),
    "nul.txt": (b"some text\x00and more", "NULs"),
    "wide.txt": (TEXT.encode("utf-16-le"), "UTF-16 without its mark"),
    "cyrillic.txt": (("привет мир " * 20).encode("cp1251"), "most of it is not UTF-8"),
    "japanese.txt": (("日本語のテキスト。" * 20).encode("shift-jis"), "most of it is not UTF-8"),
    "noise": (np.random.default_rng(0).bytes(5000), "no text"),
    "noise.jsonl": (np.random.default_rng(0).bytes(5000), "no text"),
    "text.parquet": (b"some text", "does not begin as Parquet does"),
}


@pytest.mark.parametrize("name", NOT_TEXT)
def test_what_is_no_text_is_refused_by_name_in_one_line(tmp_path, name):
    data, what = NOT_TEXT[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WorldError) as caught:
        prepare(str(tmp_path / name), "train", "bytes", tmp_path / "cache")
    assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read as ") and what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*/manifest.json"))


@pytest.mark.parametrize(
    "text", ["ID3 is an algorithm", "ORC stands for", "{not JSON", "[1] a note", "<3", "{}\nx = 1"]
)
def test_text_that_begins_like_something_else_is_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert recognise(tmp_path / "a.txt").kind == "text"
    assert texts(tmp_path / "a.txt") == [text]


def test_text_that_ends_in_nuls_is_refused_where_they_begin(tmp_path):
    """As after a crash, when a file's length was written and its last blocks were not."""
    (tmp_path / "a.txt").write_bytes(b"some words\n" * 300_000 + bytes(4096))
    with pytest.raises(WorldError, match=r"a\.txt: no text from byte 3145728 on"):
        prepare(str(tmp_path / "a.txt"), "train", "bytes", tmp_path / "cache")


def test_a_wide_window_of_zstd(tmp_path):
    """A frame that names a window of 2 GiB, as `zstd --long=31` does: its header, then one raw block."""
    data = TEXT.encode()
    frame = b"\x28\xb5\x2f\xfd" + bytes((0, 21 << 3)) + (len(data) << 3 | 1).to_bytes(3, "little") + data
    (tmp_path / "a.txt.zst").write_bytes(b"\x50\x2a\x4d\x18\x03\x00\x00\x00xyz" + frame)  # after a skippable frame
    assert texts(tmp_path / "a.txt.zst") == [TEXT]


@pytest.mark.parametrize(
    ("name", "option", "accepted"),
    [
        ("a.txt", "column=text", "expected documents="),
        ("a.jsonl", "documents=lines", "expected column="),
        ("a.parquet", "documents=file", "expected column="),
        (".", "config=x", "expected the options column, documents"),
    ],
)
def test_an_option_that_means_nothing_for_a_file_is_refused(tmp_path, name, option, accepted):
    for file, data in (("a.txt", TEXT.encode()), ("a.jsonl", LINES.encode()), ("a.parquet", parquet())):
        (tmp_path / file).write_bytes(data)
    with pytest.raises(UsageError, match=rf"data\.train = .*:{option}: .*means nothing for .*{accepted}"):
        prepare(f"{tmp_path / name}:{option}", "train", "bytes", tmp_path / "cache")
    both = open_stream(prepare(f"{tmp_path}:column=text:documents=lines", "train", "bytes", tmp_path / "cache"))
    assert both.manifest.num_documents == 3 + 2 + 3  # a folder of all three


def test_plain_text_needs_no_library(tmp_path):
    """Those of other kinds are imported when one is met: zstandard may be missing where nothing is compressed by it."""
    (tmp_path / "a.txt").write_text(TEXT)
    code = (
        "import sys; sys.modules['zstandard'] = sys.modules['pyarrow'] = sys.modules['tiktoken'] = None\n"
        "from dfm_jax.data.prepare import prepare\n"
        "from dfm_jax.data.views.folder import open_stream\n"
        "print(open_stream(prepare(*sys.argv[1:])).num_tokens)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a.txt"), "train", "bytes", str(tmp_path / "cache")]
    assert int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) == len(TEXT.encode()) + 1
