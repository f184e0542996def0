"""Preparation: packing loses nothing, interruption and division change nothing, and what goes wrong is said."""

import json
import multiprocessing
import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_jax.data import (
    encoding,
    get_tokenizer,
    is_complete,
    journal,
    missing_units,
    open_stream,
    prepare,
    summary,
)
from dfm_jax.data.prepare import reference_segments
from dfm_jax.data.sources import local
from dfm_jax.runtime.errors import UsageError, WorldError

BYTES = get_tokenizer("bytes")
EOS = BYTES.eos_id
DOCUMENT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


def write(folder, documents, files=1):
    """documents in .jsonl files; None is a row without text."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        share = documents[len(documents) * i // files : len(documents) * (i + 1) // files]
        (folder / f"{i}.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in share))
    return str(folder)


def tokens(folder):
    stream = open_stream(folder)
    return stream.read(0, stream.num_tokens)


def contents(folder):
    """What a prepared folder is made of, byte for byte."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.suffix == ".npy" or path.name == "manifest.json"
    }


def documents_of(stream):
    parts = np.split(stream, np.flatnonzero(stream == EOS) + 1)
    assert parts[-1].size == 0
    return [BYTES.decode(part[:-1]) for part in parts[:-1]]


LONG = [f"document {i} " * (i * i % 17) for i in range(120)]


@given(st.lists(st.none() | DOCUMENT, min_size=1, max_size=20), st.integers(1, 40), st.integers(1, 3))
def test_the_stream_is_the_documents_each_with_an_end(tmp_path_factory, documents, shard_tokens, files):
    folder = tmp_path_factory.mktemp("corpus")
    kept = [d for d in documents if d]
    source = write(folder / "in", documents, files)
    if not kept:
        with pytest.raises(WorldError, match=r"no text in it \(\d+ rows are empty\)"):
            prepare(source, "train", BYTES, folder, num_workers=1)
        return
    made = prepare(source, "train", BYTES, folder, num_workers=1, shard_bytes=2 * shard_tokens)
    manifest = open_stream(made).manifest
    assert documents_of(tokens(made)) == kept
    assert all(shard.num_tokens == shard_tokens for shard in manifest.shards[:-1])
    assert manifest.num_documents == len(kept)
    assert manifest.skipped == len(documents) - len(kept)
    assert manifest.num_bytes == sum(len(d.encode()) for d in kept) == manifest.num_tokens - len(kept)


@given(st.integers(7, 60), st.integers(1, 30))
def test_blocks_lose_nothing_but_the_tail_at_any_length(tmp_path_factory, shard_tokens, length):
    folder = tmp_path_factory.mktemp("corpus")
    made = prepare(write(folder / "in", LONG[:8]), "train", BYTES, folder, num_workers=1, shard_bytes=2 * shard_tokens)
    whole = tokens(made)
    blocks = open_stream(made).blocks(length)
    assert len(blocks) == len(whole) // length
    np.testing.assert_array_equal(np.concatenate(list(blocks)), whole[: len(blocks) * length])
    with pytest.raises(IndexError):
        blocks[len(blocks)]


def test_a_second_call_does_nothing(tmp_path, monkeypatch):
    source = write(tmp_path / "in", LONG)
    made = prepare(source, "train", "bytes", tmp_path)
    monkeypatch.setattr(encoding.Encoder, "__call__", None)
    assert prepare(source, "train", "bytes", tmp_path) == made
    assert prepare(str(made), "train", "bytes", tmp_path) == made  # a prepared folder is a corpus too


def test_changed_files_are_prepared_anew(tmp_path):
    made = prepare(write(tmp_path / "in", ["one"]), "train", "bytes", tmp_path)
    again = prepare(write(tmp_path / "in", ["two"]), "train", "bytes", tmp_path)
    assert made != again
    assert documents_of(tokens(again)) == ["two"]
    assert open_stream(made).fingerprint != open_stream(again).fingerprint


class Killed(BaseException):
    """Stands for kill -9: nothing in the package may catch it."""


@pytest.mark.slow
@given(st.lists(st.integers(0, 40), max_size=3), st.integers(20, 300))
def test_interruption_at_random_points_changes_nothing(tmp_path_factory, places, shard_tokens):
    folder = tmp_path_factory.mktemp("corpus")
    source = write(folder / "in", LONG[:40], files=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "UNIT_BYTES", 1)
        patch.setattr(encoding, "_BATCH_ROWS", 7)
        options = {"num_workers": 1, "shard_bytes": 2 * shard_tokens}
        whole = contents(prepare(source, "train", BYTES, folder / "whole", **options))
        write_shard = journal.ShardWriter.write
        for place in places:
            calls = iter(range(place + 1))

            def interrupted(self, data, calls=calls):
                if next(calls, None) is None:
                    raise Killed
                write_shard(self, data)

            patch.setattr(journal.ShardWriter, "write", interrupted)
            try:
                prepare(source, "train", BYTES, folder / "cut", **options)
            except Killed:
                assert not any(is_complete(path) for path in (folder / "cut").iterdir())
        patch.setattr(journal.ShardWriter, "write", write_shard)
        assert contents(prepare(source, "train", BYTES, folder / "cut", **options)) == whole


def _prepare_slowly(source, cache):
    encode = encoding.Encoder._encode

    def slowly(self, rows):
        time.sleep(0.01)
        return encode(self, rows)

    encoding.Encoder._encode = slowly
    encoding._BATCH_ROWS = 3
    prepare(source, "train", "bytes", cache, shard_bytes=400)


def test_kill_9_changes_nothing(tmp_path):
    source = write(tmp_path / "in", LONG)
    whole = contents(prepare(source, "train", "bytes", tmp_path / "whole", shard_bytes=400))
    process = multiprocessing.get_context("spawn").Process(target=_prepare_slowly, args=(source, tmp_path / "cut"))
    process.start()
    while not any((tmp_path / "cut").glob("*/*-0003.npy")):
        assert process.is_alive()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (folder,) = (tmp_path / "cut").glob("in-*")
    assert not is_complete(folder)
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-000[012].npy")}
    assert contents(prepare(source, "train", "bytes", tmp_path / "cut", shard_bytes=400)) == whole
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept  # not made twice


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_make_the_bytes_of_one_run(tmp_path, monkeypatch, parts):
    monkeypatch.setattr(local, "UNIT_BYTES", 1)
    source = write(tmp_path / "in", LONG, files=5)
    whole = contents(prepare(source, "train", "bytes", tmp_path / "whole", shard_bytes=999))
    for i in reversed(range(parts)):
        made = prepare(source, "train", "bytes", tmp_path / "parts", shard_bytes=999, shard=(i, parts))
        assert is_complete(made) == (not missing_units(made))
    assert is_complete(made)
    assert contents(made) == whole


def test_two_runs_at_once_do_the_work_once(tmp_path):
    source = write(tmp_path / "in", LONG)
    whole = contents(prepare(source, "train", "bytes", tmp_path / "whole", shard_bytes=999))
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(prepare, source, "train", "bytes", tmp_path / "both", shard_bytes=999) for _ in range(4)]
        assert all(contents(run.result()) == whole for run in runs)


def test_an_unfinished_part_is_named_and_a_plain_run_makes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "UNIT_BYTES", 1)
    source = write(tmp_path / "in", LONG, files=4)
    for i in (0, 2, 3):
        made = prepare(source, "train", "bytes", tmp_path, shard=(i, 4))
    assert missing_units(made) == ["1.jsonl"]
    with pytest.raises(WorldError, match=r"manifest\.json: No such file"):
        open_stream(made)
    assert is_complete(prepare(source, "train", "bytes", tmp_path))
    assert documents_of(tokens(made)) == [d for d in LONG if d]


def test_full_disk(tmp_path):
    """A limit on the size of a file is refused by the same system calls as a full disk."""
    source = write(tmp_path / "in", LONG)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(WorldError, match=r"data\.cache_dir = .*: File too large: .* run again to continue"):
            prepare(source, "train", "bytes", tmp_path, shard_bytes=1 << 14)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert documents_of(tokens(prepare(source, "train", "bytes", tmp_path, shard_bytes=1 << 14))) == [
        d for d in LONG if d
    ]


def test_unwritable_cache(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorldError, match=r"data\.cache_dir = .*file: .*expected a folder that can be written"):
        prepare(write(tmp_path / "in", LONG), "train", "bytes", tmp_path / "file")


def test_a_damaged_file_stops_the_run_and_what_was_prepared_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "UNIT_BYTES", 1)
    source = write(tmp_path / "in", ["one", "two", "three"], files=3)
    (tmp_path / "in" / "1.jsonl").write_text("{")
    with pytest.raises(WorldError, match=r"1\.jsonl:1: not JSON"):
        prepare(source, "train", "bytes", tmp_path)
    (folder,) = tmp_path.glob("in-*")
    assert missing_units(folder) == ["1.jsonl", "2.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": "tight"}, r"data\.packing = tight: expected continuous, reference"),
        ({"shard": (2, 2)}, r"shard = 2/2: expected i/n with 0 <= i < n"),
        ({"tokenizer": "gpt3"}, r"tokenizer\.name = gpt3"),
    ],
)
def test_usage(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        prepare("pydocs", "train", cache_dir=tmp_path, **{"tokenizer": "bytes", **options})


def test_a_prepared_folder_of_another_tokenizer_or_packing(tmp_path):
    made = prepare(write(tmp_path / "in", LONG), "train", "bytes", tmp_path)
    with pytest.raises(WorldError, match=r"made with tokenizer\.name = bytes: expected gpt2"):
        open_stream(made, "gpt2")
    with pytest.raises(WorldError, match=r"made with data\.packing = continuous: expected reference"):
        prepare(str(made), "train", "bytes", tmp_path, packing="reference")


def test_progress_and_summary(tmp_path):
    told = []
    source = write(tmp_path / "in", [*LONG, None, "last \ud800"])
    made = prepare(source, "train", "bytes", tmp_path, progress=told.append)
    manifest = open_stream(made).manifest
    assert told[-1].finished
    assert (told[-1].tokens, told[-1].documents) == (manifest.num_tokens, manifest.num_documents)
    text = summary(made)
    assert f"{manifest.num_tokens:,} tokens of bytes" in text
    assert "replaced invalid UTF-8 by U+FFFD in 1 documents" in text
    assert f"skipped {manifest.skipped} rows without text" in text
    assert "| document 1" in text


def test_pydocs_is_divided_by_document_and_never_in_two(tmp_path):
    train, valid = (prepare("pydocs", split, "bytes", tmp_path) for split in ("train", "valid"))
    a, b = set(documents_of(tokens(train))), set(documents_of(tokens(valid)))
    assert not a & b
    sizes = [open_stream(folder).manifest.num_bytes for folder in (train, valid)]
    assert 1.0e6 < sum(sizes) < 2.0e6
    assert 0.03 < sizes[1] / sum(sizes) < 0.08


@given(st.lists(st.integers(1, 5), max_size=60), st.integers(1, 9))
def test_segments_of_the_reference_partition_the_documents(lengths, rows):
    segments = reference_segments(lengths, 8, rows)
    assert sum(segments) == sum(lengths)
    assert sum(-(-(len(lengths) // 8 + (w < len(lengths) % 8)) // rows) for w in range(8)) == len(segments)


def test_packing_of_the_reference_drops_each_segments_remainder(tmp_path):
    lines = [f"{i:04d}" for i in range(8005)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    made = prepare(
        f"{tmp_path}/a.txt:documents=lines", "valid", "bytes", tmp_path, packing="reference", shard_bytes=998
    )
    stream = open_stream(made)
    assert stream.manifest.segments == (5000, 5) * 5 + (5000,) * 3
    blocks = stream.blocks(64)
    assert len(blocks) == 8 * (5000 // 64)
    starts = [BYTES.decode(blocks[i * 78])[:4] for i in range(8)]
    assert starts == ["0000", "1001", "2002", "3003", "4004", "5005", "6005", "7005"]
