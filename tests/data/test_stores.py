"""Object stores, by one in memory: text to prepare, prepared shards, and what goes wrong."""

import gzip
import json
import pathlib

import fsspec
import pytest

from dfm_jax import config as configs
from dfm_jax.config import Config
from dfm_jax.data import open_stream, prepare, verify
from dfm_jax.data.sources import remote
from dfm_jax.experiment import conditions
from dfm_jax.runtime.errors import UsageError, WorldError

FIELD = "config.data.train"


@pytest.fixture
def store():
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def prepared(folder, spec, **options):
    return prepare(spec, "train", "bytes", folder, field=FIELD, **options)


def test_text_in_a_store_is_the_text_of_files(tmp_path, store):
    (tmp_path / "x").mkdir()
    texts = {"a.txt": b"hello\n" * 40, "b/c.jsonl": b'{"text": "one"}\n{"text": "two"}\n'}
    for name, content in {**texts, "notes.png": b"\x89PNG", ".hidden.txt": b"no"}.items():
        store.pipe(f"/bucket/x/{name}", content)
    for name, content in texts.items():
        (tmp_path / "x" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_bytes(content)
    there = open_stream(prepared(tmp_path / "c", "memory://bucket/x", shard_bytes=100))
    here = open_stream(prepared(tmp_path / "d", str(tmp_path / "x"), shard_bytes=100))
    assert there.fingerprint == here.fingerprint and there.num_tokens == here.num_tokens
    assert not [file for file in (tmp_path / "c" / "remote").iterdir() if file.suffix in (".txt", ".jsonl")]


def test_the_copy_of_a_file_with_a_fault_goes_too(tmp_path, store):
    store.pipe("/b/chat.jsonl", b'{"q": "a", "a": ""}\n')
    with pytest.raises(UsageError, match=r"chat\.jsonl:1: field a is empty"):
        prepared(tmp_path, "memory://b/chat.jsonl:prompt=q:response=a")
    assert not list((tmp_path / "remote").glob("*.jsonl"))


def test_a_glob_and_compressed_text(tmp_path, store):
    for name in "ab":
        store.pipe(f"/bucket/{name}.txt.gz", gzip.compress(name.encode() * 10))
    store.pipe("/bucket/c.md", b"no")
    assert open_stream(prepared(tmp_path, "memory://bucket/*.txt.gz")).num_tokens == 22
    assert open_stream(prepared(tmp_path, "memory://bucket/a.txt.gz")).num_tokens == 11


def test_a_file_that_the_store_says_has_changed_is_another_corpus(tmp_path, store):
    store.pipe("/b/a.txt", b"one")
    first = prepared(tmp_path, "memory://b/a.txt")
    assert prepared(tmp_path, "memory://b/a.txt") == first
    store.pipe("/b/a.txt", b"four")
    assert open_stream(prepared(tmp_path, "memory://b/a.txt")).num_tokens == 5


def test_records_in_a_store(tmp_path, store):
    rows = [{"q": f"{i}=", "a": str(i)} for i in range(20)]
    store.pipe("/b/chat.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert open_stream(prepared(tmp_path, "memory://b/chat.jsonl:prompt=q:response=a")).num_records == 20


@pytest.mark.parametrize("records", [False, True])
def test_shards_in_a_store_are_copied_when_they_are_read(tmp_path, store, records):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"{i}", "q": f"{i}", "a": "x"}) + "\n" for i in range(400)))
    local = prepared(tmp_path / "c", f"{file}{':prompt=q:response=a' if records else ''}", shard_bytes=512)
    for path in local.iterdir():
        if path.is_file() and not path.name.startswith("."):
            store.pipe(f"/done/{path.name}", path.read_bytes())
    copy = prepared(tmp_path / "d", "memory://done")
    names = {path.name for path in copy.glob("*.npy")}
    assert not names
    stream, original = open_stream(copy, "bytes"), open_stream(local, "bytes")
    assert stream.blocks(8)[0].tolist() == original.blocks(8)[0].tolist()
    some = {path.name for path in copy.glob("unit-*.npy")}
    assert some == {"unit-00000-0000.npy"}
    assert [block.tolist() for block in stream.blocks(8)] == [block.tolist() for block in original.blocks(8)]
    assert stream.fingerprint == original.fingerprint and list(verify(copy)) == list(verify(local))
    store.store.clear()  # what is here serves without the store
    assert open_stream(prepared(tmp_path / "d", "memory://done")).blocks(8)[1].tolist() == stream.blocks(8)[1].tolist()


def test_a_damaged_shard_of_a_store_is_found(tmp_path, store):
    (tmp_path / "a.txt").write_text("word " * 1000)
    local = prepared(tmp_path / "c", str(tmp_path / "a.txt"))
    for path in local.glob("*.*"):
        content = bytearray(path.read_bytes())
        if path.suffix == ".npy":
            content[200] ^= 1
        store.pipe(f"/done/{path.name}", bytes(content))
    with pytest.raises(WorldError, match=r"unit-00000-0000.npy: altered since it was written"):
        _ = open_stream(prepared(tmp_path / "d", "memory://done")).blocks(8)[0]


def refusing(*_, **__):
    raise ConnectionError("Could not connect to https://user:hunter2@host/x?X-Amz-Signature=hunter2\nmore")


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("memory://no/such.txt", "no file there"),
        ("memory://b/chat.jsonl:prompt=q:response=no", "memory:///b/chat.jsonl:1: no field no: expected it among q, a"),
        ("https://user:hunter2@host/a.txt", "it holds credentials: expected a URL without them"),
        ("https://host/a.txt?X-Amz-Signature=hunter2", "it holds credentials: expected a URL without them"),
        ("nosuch://b/a.txt", "nosuch:// is no store: expected gs, s3, hf or https"),
        ("memory://b/a.txt:split=x", "split=x means nothing for files in a store"),
        ("memory://b/a.txt:no=x", "no=x: expected config="),
    ],
)
def test_what_goes_wrong_is_one_line(tmp_path, store, spec, error):
    store.pipe("/b/chat.jsonl", b'{"q": "a", "a": "b"}\n')
    with pytest.raises((UsageError, WorldError)) as raised:
        prepared(tmp_path, spec)
    text = str(raised.value)
    assert error in text and text.startswith(f"{FIELD} = ") and "\n" not in text and "hunter2" not in text


def test_a_store_that_does_not_answer_is_one_line_without_credentials(tmp_path, store, monkeypatch):
    store.pipe("/b/a.txt", b"x")
    monkeypatch.setattr(type(store), "info", refusing)
    with pytest.raises(WorldError) as raised:
        prepared(tmp_path, "memory://b/a.txt")
    text = str(raised.value)
    assert text.startswith(f"{FIELD} = memory://b/a.txt: the store cannot be reached or read (ConnectionError: Could")
    assert "hunter2" not in text and "\n" not in text


@pytest.mark.parametrize("where", ["b/a.txt", "b/folder", "b/*.txt"])
def test_silence_is_not_taken_for_a_file_that_is_not_there(tmp_path, store, monkeypatch, where):
    """As fsspec's http has it."""

    def info(self, path, **options):
        raise FileNotFoundError(path) from ConnectionRefusedError(111, "connect call failed")

    monkeypatch.setattr(type(store), "info", info)
    with pytest.raises(WorldError, match=r"the store cannot be reached or read \(ConnectionRefusedError"):
        prepared(tmp_path, f"memory://{where}")


def test_no_file_of_a_run_or_a_cache_names_credentials(tmp_path):
    """A lock holds the command line of its process."""
    for spec in (
        "https://me:hunter2@host/a.txt",
        "s3://b/a.txt?X-Amz-Signature=hunter2",
        "a.txt=1,gs://k:hunter2@b/c=-1",
    ):
        for field in ("data.train", "data.valid", "eval.corpora"):
            changes = {field: (spec,) if field == "eval.corpora" else spec, "data.cache_dir": str(tmp_path / "cache")}
            with pytest.raises(UsageError, match=f"^config.{field} = .*: it holds credentials") as raised:
                conditions.check(configs.replace(Config(), changes))
            assert "hunter2" not in str(raised.value)
        with pytest.raises(UsageError, match="it holds credentials"):
            prepared(tmp_path / "cache", f"{spec}:no=x")
    assert not (tmp_path / "cache").exists()


def test_a_package_that_is_missing_names_the_extra(tmp_path, monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UsageError, match=r"s3:// needs a package .* pip install 'dfm-jax\[s3\]'"):
        prepared(tmp_path, "s3://bucket/a.txt")


def test_no_file_that_is_written_names_what_a_url_hides():
    assert remote._line(ValueError("https://u:hunter2@h/x?token=hunter2 failed")) == "https://h/x failed"
    assert remote.is_url("hf://datasets/a/b") and not remote.is_url("a:b") and not remote.is_url("/a//b")


def test_copies_are_whole_or_not_there(tmp_path, store, monkeypatch):
    store.pipe("/b/a.txt", b"x" * 100)

    def breaking(self, path, target, **options):
        pathlib.Path(target).write_bytes(b"x")
        raise OSError("broken pipe")

    monkeypatch.setattr(type(store), "get_file", breaking)
    with pytest.raises(WorldError, match=r"cannot be reached or read"):
        prepared(tmp_path, "memory://b/a.txt")
    assert not list((tmp_path / "remote").glob("*.txt*"))
