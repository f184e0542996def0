"""Opening shards: sizes always, checksums on demand, and a message for each kind of damage."""

import json

import numpy as np
import pytest

from dfm_jax.data import open_stream, prepare, verify
from dfm_jax.errors import WorldError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("some words in a file " * 40)
    return prepare(str(tmp_path / "a.txt"), "train", "bytes", tmp_path, shard_bytes=512)


def test_a_shard_is_a_plain_npy_file(folder):
    shards = sorted(folder.glob("*.npy"))
    assert len(shards) == 4
    np.testing.assert_array_equal(np.concatenate([np.load(s) for s in shards]), open_stream(folder).read(0, 841))
    assert [shard.name for shard in verify(folder)] == [s.name for s in shards]


@pytest.mark.parametrize("damage", ["truncated", "longer", "gone"])
def test_a_shard_of_another_size_is_refused_when_opened(folder, damage):
    path = folder / "unit-00000-0002.npy"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "truncated" else data + b"x")
    with pytest.raises(WorldError, match=r"unit-00000-0002\.npy: .*the manifest .*prepare the corpus again"):
        open_stream(folder)


@pytest.mark.parametrize("place", [20, 200])
def test_an_altered_shard_is_found_by_verify(folder, place):
    """In its header, or in its tokens."""
    path = folder / "unit-00000-0002.npy"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    open_stream(folder)
    with pytest.raises(WorldError, match=r"unit-00000-0002\.npy: altered since it was written"):
        list(verify(folder))


def test_damaged_manifest(folder):
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    for text, message in [
        ("{", "not a manifest"),
        ("{}", "format = None: expected 1"),
        (json.dumps({**fields, "extra": 1}), "not a manifest"),
        (json.dumps({**fields, "format": 99}), "format = 99: expected 1"),
    ]:
        path.write_text(text)
        with pytest.raises(WorldError, match=message):
            open_stream(folder)


def test_no_folder(tmp_path):
    with pytest.raises(WorldError, match=r"expected a folder made by --mode=prepare"):
        open_stream(tmp_path / "none")


def test_the_fingerprint_is_of_the_content(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    assert open_stream(tmp_path / "copy").fingerprint == open_stream(folder).fingerprint


def test_a_corpus_shorter_than_a_block(folder):
    with pytest.raises(WorldError, match=r"841 tokens, not one block of model\.length = 1024"):
        open_stream(folder).blocks(1024)
