"""The reader of torch.save's files builds tensors, dicts, lists and scalars, and nothing else ever happens."""

import collections
import contextlib
import os
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_jax.checkpoints.pytorch import restricted_pickle
from dfm_jax.checkpoints.pytorch.archive import read_archive, write_archive


def loads(data: bytes):
    return restricted_pickle.loads(data, lambda key, dtype, size: np.zeros(size, dtype))


class Command:
    """Runs a shell command when it is unpickled the ordinary way."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def save_pickle(path, data: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=10,
)


@given(value=plain, protocol=st.sampled_from([2, 4, 5]))
def test_reads_what_pickle_writes(value, protocol):
    assert loads(pickle.dumps(value, protocol)) == value


@given(value=plain)
def test_pickle_reads_what_we_write(value):
    assert pickle.loads(restricted_pickle.dumps(value, lambda array: "0")) == value


def test_ordered_dicts_and_their_attributes():
    value = collections.OrderedDict(b=1, a=2)
    value._metadata = collections.OrderedDict(version=1)
    for protocol in (2, 4):
        read = loads(pickle.dumps(value, protocol))
        assert list(read.items()) == [("b", 1), ("a", 2)]
        assert not hasattr(read, "_metadata")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_command_is_refused_by_name_and_does_not_run(tmp_path, protocol):
    ran, path = tmp_path / "ran", tmp_path / "checkpoint.pth"
    data = pickle.dumps({"model": Command(f"touch {ran}")}, protocol)
    save_pickle(path, data)
    with pytest.raises(ValueError, match=r"checkpoint.pth: (posix|nt).system in the pickle: expected"):
        read_archive(path)
    assert not ran.exists()
    pickle.loads(data)
    assert ran.exists(), "the command was one that works"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cbuiltins\neval\n.", "builtins.eval"),
        (b"ctorch\nFloatStorage\n}b.", "damaged"),  # BUILD on something else than an OrderedDict
        (b"}}b.", "damaged"),
        (b"ctorch\nFloatStorage\n)R.", "a call of torch.FloatStorage"),
        (b"ccollections\nOrderedDict\n(]tR.", "a call of collections.OrderedDict"),
        (b"(cos\nsystem\no.", "os.system"),
        (b"(ios\nsystem\n.", "INST"),
        (b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"\x82\x01.", "EXT1"),
        (b"Pstorage\n.", "PERSID"),
        (b"(U\x07storagetQ.", "SHORT_BINSTRING"),
        (b"\x8f.", "EMPTY_SET"),
        (b".", "damaged"),
        (b"t.", "damaged"),
        (b"}t.", "no mark"),
        (b"}(K\x01u.", "a key without a value"),
        (b"})K\x01s.", "tuple for str"),
        (b"h\x07.", "damaged"),  # an empty place of the memo
        (b"}", "exhausted before seeing STOP"),
        (b"", "exhausted before seeing STOP"),
    ],
)
def test_anything_else_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        loads(data)


@given(data=st.binary(max_size=40))
def test_noise_is_a_value_or_a_value_error(data):
    with contextlib.suppress(ValueError):
        loads(data + b".")


@given(
    size=st.lists(st.integers(-2, 5), max_size=3),
    stride=st.lists(st.integers(-2, 30), max_size=3),
    offset=st.integers(-2, 40),
)
def test_a_tensor_stays_in_its_storage(size, stride, offset):
    """as_strided would read any memory of the process: what it gets is checked."""
    storage = np.arange(24.0)
    try:
        tensor = restricted_pickle._tensor(storage, offset, tuple(size), tuple(stride))
    except ValueError:
        return
    assert tensor.shape == tuple(size) and tensor.size <= 24
    for index in np.ndindex(*tensor.shape):
        assert tensor[index] == offset + sum(i * s for i, s in zip(index, stride, strict=True))


def test_archives_round_trip(tmp_path):
    value = {
        "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "int64": np.array(7),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float16),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "rest": [1, 2.5, None, "é", (True, 10**30)],
    }
    write_archive(tmp_path / "a.pth", value)
    read = read_archive(tmp_path / "a.pth")
    assert list(read) == list(value) and read.pop("rest") == value["rest"]
    for name, array in read.items():
        assert array.dtype == value[name].dtype
        np.testing.assert_array_equal(array, value[name])
    first = (tmp_path / "a.pth").read_bytes()
    write_archive(tmp_path / "a.pth", value)
    assert (tmp_path / "a.pth").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_refuses_to_write_other_objects(tmp_path):
    for value in (object(), np.array(["text"]), {1, 2}):
        with pytest.raises(ValueError, match="expected"):
            write_archive(tmp_path / "a.pth", {"x": value})
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"model": 1}))  # torch.save before its zip format
    with pytest.raises(ValueError, match=r"a.pth: not a whole file of torch.save's zip format"):
        read_archive(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", b"")
    with pytest.raises(ValueError, match=r"without one data.pkl"):
        read_archive(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"}." + b" " * 1000)
    with pytest.raises(ValueError, match="compressed"):
        read_archive(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/byteorder", b"big")
        archive.writestr("a/data.pkl", b"}.")
    with pytest.raises(ValueError, match="byteorder = big: expected little"):
        read_archive(path)
    with pytest.raises(FileNotFoundError):
        read_archive(tmp_path / "missing.pth")
