"""A corpus is its contents: copies, names and times; files that are known are not made twice; text that is gone."""

import json
import os
import shutil

import pytest

from dfm_jax.data import encoding, get_tokenizer, identity, is_complete, journal, open_stream, prepare
from dfm_jax.data.folders import digest, folder_name
from dfm_jax.data.identity import Memory
from dfm_jax.data.sources import hub, local
from dfm_jax.runtime.errors import UsageError, WorldError

BYTES = get_tokenizer("bytes")


def write(folder, texts):
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return str(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".npy", ".crc")}


@pytest.fixture
def encoded(monkeypatch):
    """The texts that were encoded, in order."""
    seen = []
    encode = encoding.Encoder._encode

    def watched(self, items):
        seen.extend(row.text for _, row in items)
        return encode(self, items)

    monkeypatch.setattr(encoding.Encoder, "_encode", watched)
    return seen


TEXTS = {f"{i}.txt": f"text number {i} " * (i + 3) for i in range(6)}


def test_a_copy_with_new_times_at_another_place_is_the_same_corpus(tmp_path, encoded):
    source = write(tmp_path / "in", TEXTS)
    made = prepare(source, "train", BYTES, tmp_path / "cache")
    shutil.copytree(source, tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        os.utime(path, (1, 1))
    encoded.clear()
    assert prepare(str(tmp_path / "copy"), "train", BYTES, tmp_path / "cache") == made
    assert prepare(f"{tmp_path}/copy/*.txt", "train", BYTES, tmp_path / "cache") == made
    for path in sorted((tmp_path / "copy").iterdir()):
        path.rename(path.with_name(f"b{path.name}"))  # the same order
    assert prepare(str(tmp_path / "copy"), "train", BYTES, tmp_path / "cache") == made
    assert not encoded


@pytest.mark.parametrize("shard_bytes", [64, 1000, 1 << 20])
def test_only_a_changed_file_is_encoded_again_and_the_bytes_are_those_of_a_fresh_preparation(
    tmp_path, encoded, shard_bytes
):
    source = write(tmp_path / "in", TEXTS)
    prepare(source, "train", BYTES, tmp_path / "cache", shard_bytes=shard_bytes)
    for change in ({"3.txt": "mended"}, {"25.txt": "added"}, {"0.txt": TEXTS["5.txt"]}):
        write(tmp_path / "in", change)
        encoded.clear()
        made = prepare(source, "train", BYTES, tmp_path / "cache", shard_bytes=shard_bytes)
        assert encoded == [text for text in change.values() if text not in TEXTS.values()]
        fresh = prepare(source, "train", BYTES, tmp_path / f"fresh{len(encoded)}{change}"[:40], shard_bytes=shard_bytes)
        assert contents(made) == contents(fresh)
        assert open_stream(made).manifest == open_stream(fresh).manifest
        assert open_stream(made).fingerprint == open_stream(fresh).fingerprint


def test_a_file_that_is_taken_away_needs_no_encoding(tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(local, "UNIT_BYTES", 60)  # other units than before
    source = write(tmp_path / "in", TEXTS)
    prepare(source, "train", BYTES, tmp_path / "cache")
    (tmp_path / "in" / "1.txt").unlink()
    encoded.clear()
    stream = open_stream(prepare(source, "train", BYTES, tmp_path / "cache"))
    assert not encoded
    whole = "".join(text + "<|endoftext|>" for name, text in TEXTS.items() if name != "1.txt")
    assert BYTES.decode(stream.read(0, stream.num_tokens)) == whole
    assert stream.manifest.num_documents == 5


def test_other_tokenizers_and_readings_are_not_mistaken_for_each_other(tmp_path, encoded):
    source = write(tmp_path / "in", {"a.txt": "1 2\n3\n"})
    prepare(source, "train", BYTES, tmp_path / "cache")
    lines = open_stream(prepare(f"{source}:documents=lines", "train", BYTES, tmp_path / "cache"))
    assert lines.manifest.num_documents == 2
    ids = open_stream(prepare(source, "train", "ids:9", tmp_path / "cache"))
    assert ids.read(0, 3).tolist() == [1, 2, 3]


def test_tokens_that_were_damaged_since_are_made_again(tmp_path, encoded):
    source = write(tmp_path / "in", TEXTS)
    made = prepare(source, "train", BYTES, tmp_path / "cache")
    shard = made / "unit-00000-0000.npy"
    data = bytearray(shard.read_bytes())
    data[-4] ^= 1
    shard.write_bytes(data)
    write(tmp_path / "in", {"9.txt": "new"})
    encoded.clear()
    again = prepare(source, "train", BYTES, tmp_path / "cache", shard_bytes=256)
    assert set(encoded) >= {"new", TEXTS["5.txt"]}
    assert contents(again) == contents(prepare(source, "train", BYTES, tmp_path / "fresh", shard_bytes=256))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", range(0, 14, 2))
def test_a_kill_amid_copying_changes_nothing(tmp_path, monkeypatch, place):
    source = write(tmp_path / "in", TEXTS)
    prepare(source, "train", BYTES, tmp_path / "cache", shard_bytes=128)
    write(tmp_path / "in", {"2.txt": "mended " * 20})
    whole = contents(prepare(source, "train", BYTES, tmp_path / "fresh", shard_bytes=128))
    write_shard, calls = journal.ShardWriter.write, iter(range(place + 1))

    def interrupted(self, data):
        if next(calls, None) is None:
            raise Killed
        write_shard(self, data)

    monkeypatch.setattr(journal.ShardWriter, "write", interrupted)
    with pytest.raises(Killed):
        prepare(source, "train", BYTES, tmp_path / "cache", shard_bytes=128)
    monkeypatch.setattr(journal.ShardWriter, "write", write_shard)
    if place % 4:  # nothing is there to copy from any more
        for folder in (tmp_path / "cache").iterdir():
            if folder.is_dir() and is_complete(folder):
                shutil.rmtree(folder)
    assert contents(prepare(source, "train", BYTES, tmp_path / "cache", shard_bytes=128)) == whole


def test_a_file_is_read_once_as_long_as_its_size_and_time_stay(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(identity, "_sha256", lambda path: read.append(path.name) or "0" * 64)
    paths = [tmp_path / f"{i}.txt" for i in range(3)]
    for path in paths:
        path.write_text("x")
        os.utime(path, (1000, 1000))
    (tmp_path / "new.txt").write_text("x")  # may be written again within what its file system takes for one moment
    for _ in range(2):
        Memory(tmp_path / "cache").hashes([*paths, tmp_path / "new.txt"])
    assert sorted(read) == ["0.txt", "1.txt", "2.txt", "new.txt", "new.txt"]
    read.clear()
    os.utime(paths[1], (1000, 1001))
    with open(tmp_path / "cache" / identity.FILE, "a") as file:
        file.write('["half a li')
    Memory(tmp_path / "cache").hashes(paths)
    assert read == ["1.txt"]


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path, monkeypatch):
    source = write(tmp_path / "in", TEXTS)
    encode = encoding.Encoder._encode

    def meddling(self, items):
        (tmp_path / "in" / "5.txt").write_text("other")
        return encode(self, items)

    monkeypatch.setattr(encoding.Encoder, "_encode", meddling)
    monkeypatch.setattr(encoding, "_BATCH_ROWS", 1)
    with pytest.raises(WorldError, match=r"5\.txt: changed while it was being prepared"):
        prepare(source, "train", BYTES, tmp_path / "cache", num_workers=1)


def test_a_file_that_changes_after_it_was_identified_is_noticed(tmp_path, monkeypatch):
    source = write(tmp_path / "in", TEXTS)
    units = local.units

    def meddling(*args):
        (tmp_path / "in" / "5.txt").write_text("other")
        return units(*args)

    monkeypatch.setattr(local, "units", meddling)
    with pytest.raises(WorldError, match=r"5\.txt: changed while it was being prepared"):
        prepare(source, "train", BYTES, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/manifest.json"))


@pytest.mark.parametrize("spec", ["in", "in/*.txt", "in:documents=lines", "in/1.txt"])
def test_shards_are_used_when_their_text_is_gone(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in", TEXTS)
    made = prepare(spec, "train", BYTES, "cache")
    shutil.rmtree(tmp_path / "in")
    told = []
    if "*" in spec:  # what a glob would match now is nothing, which may be meant
        with pytest.raises(WorldError, match="no file there"):
            prepare(spec, "train", BYTES, "cache")
        return
    assert prepare(spec, "train", BYTES, "cache", note=told.append) == made
    assert prepare(f"{tmp_path}/{spec}", "train", BYTES, "cache") == made
    assert len(told) == 1 and "there is no such text now; its shards are used" in told[0]
    for other in (f"{spec}:documents=file", f"lm1b@{spec}") if "lines" not in spec else ("in",):
        with pytest.raises((UsageError, WorldError), match=r"expected .*path that exists|an existing file"):
            prepare(other, "train", BYTES, "cache")
    with pytest.raises((UsageError, WorldError), match=r"expected .*path that exists|an existing file"):
        prepare(spec, "valid", BYTES, "cache")


def test_shards_of_version_0_1_are_found(tmp_path, encoded):
    """Their folder is named after names, sizes and times; their manifest and journals lack what is new."""
    source = write(tmp_path / "in", TEXTS)
    made = prepare(source, "train", BYTES, tmp_path / "cache")
    fingerprint = open_stream(made).fingerprint
    stats = [(tmp_path / "in" / name).stat() for name in TEXTS]
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(TEXTS, stats, strict=True)]
    old = {"files": files, "column": "text", "documents": "file", "rules": [False, False, False]}
    name = folder_name(source, digest(old, "train", "bytes", "continuous", 1 << 28), "train", "bytes")
    made.rename(tmp_path / "cache" / name)
    made = tmp_path / "cache" / name
    fields = json.loads((made / "manifest.json").read_text())
    for new in ("bad", "lost", "places", "left_out", "source", "commit"):
        del fields[new]
    (made / "manifest.json").write_text(json.dumps(fields))
    for path in (*made.glob("*.crc"), *made.glob("unit-*.json")):
        path.unlink()
    encoded.clear()
    assert prepare(source, "train", BYTES, tmp_path / "cache") == made
    stream = open_stream(made)
    assert not encoded and stream.fingerprint == fingerprint
    assert BYTES.decode(stream.read(0, 14)) == "text number 0 "
    assert (made / "unit-00000-0000.crc").exists()  # verified as a whole when it was first read


@pytest.mark.slow
def test_a_journal_of_version_0_1_goes_on(tmp_path, monkeypatch):
    whole = prepare("pydocs", "train", BYTES, tmp_path / "whole", shard_bytes=1 << 18)
    write_shard, calls = journal.ShardWriter.write, iter(range(9))

    def interrupted(self, data):
        if next(calls, None) is None:
            raise Killed
        write_shard(self, data)

    monkeypatch.setattr(journal.ShardWriter, "write", interrupted)
    with pytest.raises(Killed):
        prepare("pydocs", "train", BYTES, tmp_path / "cut", shard_bytes=1 << 18)
    monkeypatch.setattr(journal.ShardWriter, "write", write_shard)
    ((path,),) = [list((tmp_path / "cut").glob("*/unit-00000.json"))]
    fields = json.loads(path.read_text())
    assert fields["rows"]
    for new in ("bad", "lost", "places", "parts"):
        del fields[new]
    path.write_text(json.dumps(fields))
    made = prepare("pydocs", "train", BYTES, tmp_path / "cut", shard_bytes=1 << 18)
    assert contents(made) == contents(whole)


class Info:
    def __init__(self, sha):
        self.sha = sha


@pytest.fixture
def answers(monkeypatch):
    """What the hub says when it is asked for a dataset's commit, once each."""
    import huggingface_hub

    asked = []

    def dataset_info(self, path, revision=None, timeout=None):
        assert timeout
        asked.append((path, revision))
        answer = asked_for[0] if asked_for else ConnectionError("no route to host")
        if isinstance(answer, Exception):
            raise answer
        return Info(answer)

    asked_for = []
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    return asked_for, asked


def test_the_commit_of_a_dataset_is_part_of_its_identity(answers, tmp_path, monkeypatch):
    says, asked = answers
    part = type("Part", (), {
        "name": "file 1 of 1", "size": 1, "key": "", "fraction": lambda self: 1.0,
        "rows": lambda self, skip, cut: iter([hub.Row(f"text of {says[0]}")][skip:]),
    })  # fmt: skip
    monkeypatch.setattr(hub.Source, "units", lambda self: [hub.Unit([part()])])
    told, cache = [], tmp_path / "cache"

    def made(spec):
        told.clear()
        return prepare(spec, "train", BYTES, cache, note=told.append)

    says.append("a" * 40)
    first = made("owner/data")
    assert asked == [("owner/data", None)]
    assert open_stream(first).manifest.commit == "a" * 40
    assert made("owner/data") == first and not told
    says[0] = "b" * 40  # what is prepared stays, and it is said
    assert made("owner/data") == first
    assert "another commit now, " + "b" * 40 in told[0] and "owner/data:revision=" + "b" * 40 in told[0]
    second = made("owner/data:revision=" + "b" * 40)
    assert second != first and open_stream(second).manifest.commit == "b" * 40
    moved = made("owner/data:revision=main")
    assert moved == second  # of the same commit
    says.clear()
    asked.clear()
    assert made("owner/data") in (first, second) and "the shards that are there are used" in told[0]
    assert made("owner/data:revision=" + "b" * 40) == second
    assert len(asked) == 1  # a commit needs no asking
    with pytest.raises(
        WorldError, match=r"data\.train = owner/other: .*ConnectionError: no route to host.*expected"
    ) as e:
        made("owner/other")
    assert "\n" not in str(e.value) and len(asked) == 2


def test_what_the_hub_does_not_know_is_one_line(answers):
    from huggingface_hub import errors

    says, _ = answers
    for kind, line in (
        (errors.RepositoryNotFoundError, "no such file here, and no such dataset on the hub"),
        (errors.RevisionNotFoundError, "has no revision v9"),
    ):
        says[:] = [kind.__new__(kind, "404\nmany lines")]
        with pytest.raises(UsageError, match=line):
            hub.Source("a/b", None, "train", "v9", "text", "data.train = a/b").commit()


@pytest.mark.parametrize("spec", ["nothing.txt", "./nothing", "/no/such", "in/nothing", "~/nothing", "a/b/c", "in/"])
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(answers, tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in").mkdir()
    with pytest.raises(WorldError, match=f"data.train = {spec}: no .*file.*expected"):
        prepare(spec, "train", BYTES, tmp_path / "cache")
    assert not answers[1]
