"""Files appear whole or not at all."""

import json
import os
import stat

import pytest

from dfm_jax.runtime import files
from dfm_jax.runtime.errors import WorldError


@pytest.mark.parametrize("durable", [False, True])
def test_replaces_text_and_bytes_with_usual_permissions(tmp_path, durable):
    path = tmp_path / "a.txt"
    files.write_atomically(path, "ä\n", durable=durable)
    assert path.read_bytes() == "ä\n".encode()
    files.write_atomically(path, b"\x00", durable=durable)
    assert path.read_bytes() == b"\x00"
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_failure_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json_atomically(path, {"a": 1})

    def fail(*_):
        raise OSError("no")

    with pytest.raises(ValueError, match="JSON"):
        files.write_json_atomically(path, float("nan"))
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        files.write_json_atomically(path, {"a": 2})
    assert files.read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]


def test_what_is_written_in_parts_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.bin"
    with files.replacing(path, durable=True) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(KeyError), files.replacing(path) as file:
        file.write(b"second")
        raise KeyError
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["a.bin"]


def test_reading_what_is_not_there_or_no_json(tmp_path):
    with pytest.raises(WorldError, match=r"a\.json: expected a readable JSON file"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(WorldError, match="expected a readable JSON file"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps([1]))
    assert files.read_json(tmp_path / "a.json") == [1]


def test_ensure_writable(tmp_path):
    assert files.ensure_writable(tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(WorldError, match=r"workdir = .*file/x: expected a folder that can be written to \("):
        files.ensure_writable(tmp_path / "file" / "x")
    with pytest.raises(WorldError, match=r"data\.cache_dir = /proc/x"):
        files.ensure_writable("/proc/x", field="data.cache_dir")
