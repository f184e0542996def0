"""Opening shards: sizes always, checksums on demand, and a message for each kind of damage."""

import json

import numpy as np
import pytest

from dfm_jax.data import eval_batches, open_stream, prepare, train_batches, verify
from dfm_jax.data.shards import ShardFiles, ShardWriter
from dfm_jax.runtime.errors import WorldError


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


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("place", [20, 200])
def test_an_altered_shard_is_found_by_verify(folder, place):
    """In its header, or in its tokens."""
    flip(folder / "unit-00000-0002.npy", place)
    open_stream(folder)
    with pytest.raises(WorldError, match=r"unit-00000-0002\.npy: altered since it was written"):
        list(verify(folder))


@pytest.mark.parametrize("place", [20, 128, 129, 639])
@pytest.mark.parametrize("batches", ["train", "eval", "read"])
def test_an_altered_shard_is_never_trained_on_in_silence(folder, place, batches):
    """It is found when it is first read, without `verify`, and named in one line; all other blocks are given."""
    flip(folder / "unit-00000-0002.npy", place)
    stream = open_stream(folder)
    given = []
    with pytest.raises(WorldError, match=r"unit-00000-0002\.npy: (altered|its header)") as caught:
        if batches == "read":
            given.append(stream.read(0, 512))
            stream.read(0, 841)
        elif batches == "eval":
            given += (batch.tokens for batch, _ in eval_batches(stream, length=256, batch_size=1))
        else:
            for batch in train_batches(stream, length=256, batch_size=1, seed=0):
                given.append(batch.tokens)
    assert "\n" not in str(caught.value)
    text = ("some words in a file " * 40).encode()
    assert all(bytes(tokens.ravel().astype(np.uint8)) in text for tokens in given)


def test_an_alteration_is_found_in_every_chunk_and_dtype(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 60_000, 10_000)
    for dtype in ("<u2", "<u4"):
        writer = ShardWriter(tmp_path, "a.npy", dtype)
        for part in np.split(tokens, [1, 2500, 2501, 9000]):
            writer.write(part)
        shard = writer.close()
        offset = (tmp_path / "a.npy").stat().st_size - len(tokens) * np.dtype(dtype).itemsize
        np.testing.assert_array_equal(ShardFiles(tmp_path, [shard], dtype).read(0, 10_000), tokens)
        for i in (0, 2047, 2048, 5000, 9999):
            flip(tmp_path / "a.npy", offset + i * np.dtype(dtype).itemsize)
            files = ShardFiles(tmp_path, [shard], dtype)
            with pytest.raises(WorldError, match=r"a\.npy: altered since it was written \(among tokens"):
                files.read(i, i + 1)
            far = (i + 5000) % 10_000
            np.testing.assert_array_equal(files.read(far, far + 1), tokens[far : far + 1])
            flip(tmp_path / "a.npy", offset + i * np.dtype(dtype).itemsize)


@pytest.mark.parametrize("damage", ["gone", "short", "wrong"])
def test_checksums_that_are_gone_are_made_again_from_a_shard_that_is_verified(folder, damage):
    path = folder / "unit-00000-0002.crc"
    whole = path.read_bytes()
    if damage == "wrong":
        flip(path, 0)
        with pytest.raises(WorldError, match=r"unit-00000-0002\.npy: altered"):
            open_stream(folder).read(0, 841)
        return
    path.unlink() if damage == "gone" else path.write_bytes(whole[:-1])
    assert len(open_stream(folder).read(0, 841)) == 841
    assert path.read_bytes() == whole
    path.unlink()
    flip(folder / "unit-00000-0002.npy", 200)
    with pytest.raises(WorldError, match=r"unit-00000-0002\.npy: altered since it was written \(sha256"):
        open_stream(folder).read(0, 841)
    assert not path.exists()


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
