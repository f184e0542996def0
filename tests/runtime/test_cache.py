"""The folder of compiled programs: where it is, that entries appear whole, and that nothing there ends a run."""

import errno
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from configs import base
from dfm_jax import config as configs
from dfm_jax.runtime import cache
from dfm_jax.runtime.errors import UsageError
from dfm_jax.training import resume

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    """As in a process that has not compiled yet and whose user set nothing; the tests' own cache comes back."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.setattr(cache, "_chosen", set())
    monkeypatch.setattr(cache, "_ours", set())
    monkeypatch.setattr(cache, "_said", set())
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    cache._forget()
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(cache, "note", lines.append)
    return lines


def compile_something(number: float) -> float:
    """A program of its own for each number; compiled again each time it is asked for, unless it was kept."""
    return float(jax.jit(lambda x: jnp.tanh(x) * number)(jnp.float32(1)))


def entries(folder):
    return sorted(folder.glob("*-cache"))


def test_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.default_folder() == tmp_path / "home/.cache/dfm_jax/compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_folder() == tmp_path / "xdg/dfm_jax/compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.default_folder() == tmp_path / "home/.cache/dfm_jax/compiled"


def test_a_folder_of_choice_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = cache.use("~/programs")
    assert folder is not None and folder.parent == tmp_path / "programs"
    compile_something(2.5)
    assert entries(folder)
    assert folder.stat().st_mode & 0o077 == 0, "others could put programs there"


def test_what_the_user_set_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert cache.use("auto") is None
    assert cache.use(str(tmp_path / "other"), only_if_none=True) is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    # A field that names a folder, or none, was written for this program.
    assert cache.use(str(tmp_path / "other")) is not None
    assert jax.config.jax_compilation_cache_dir.startswith(str(tmp_path / "other"))


def test_nothing_switches_it_off(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert cache.use("") is None
    compile_something(3.25)
    assert list(tmp_path.iterdir()) == []
    # A run that is loaded afterwards does not switch it on again.
    assert cache.use("auto", only_if_none=True) is None and not jax.config.jax_compilation_cache_dir


def test_a_damaged_entry_is_compiled_again_and_replaced(tmp_path):
    folder = cache.use(str(tmp_path))
    assert folder is not None
    value = compile_something(4.75)
    (entry,) = (e for e in entries(folder) if "lambda" in e.name)
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="persistent compilation cache"):
        assert compile_something(4.75) == value
    assert len(entry.read_bytes()) > len(whole) // 2
    os.utime(entry, (1, 1))
    assert compile_something(4.75) == value  # a warning would be an error
    assert entry.stat().st_mtime > 1, "an entry that was used is not old"


def test_an_entry_appears_whole_or_not_at_all(monkeypatch, tmp_path, said):
    kept = cache.Entries(str(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.os, "replace", full)
    for key in ("a", "b"):
        kept.put(key, b"program")
    assert list(tmp_path.iterdir()) == [] and kept.get("a") is None
    assert len(said) == 1 and os.strerror(errno.ENOSPC) in said[0]


def test_a_folder_that_cannot_be_is_a_note(tmp_path, said):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert cache.use(str(tmp_path / "file")) is None
    assert len(said) == 1 and "training.compilation_cache" in said[0]
    assert compile_something(5.125)


def test_pruning_leaves_what_was_used_last(tmp_path):
    for age, name in enumerate(("newest", "new", "old", "oldest")):
        file = tmp_path / "machine" / f"{name}-cache"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(100))
        os.utime(file, (1000 - age, 1000 - age))
    being_written, left_behind = (tmp_path / "machine" / f".{name}.tmp" for name in ("now", "then"))
    being_written.touch()
    left_behind.touch()
    os.utime(left_behind, (1, 1))
    cache.prune(tmp_path, limit=250)
    assert {p.name for p in (tmp_path / "machine").iterdir()} == {"newest-cache", "new-cache", ".now.tmp"}
    cache.prune(tmp_path / "nowhere", limit=0)


def test_pruning_beside_others(monkeypatch, tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(bytes(100))
    remove = os.unlink

    def raced(path):
        remove(path)
        raise FileNotFoundError(path)  # another process was faster

    monkeypatch.setattr(cache.os, "unlink", raced)
    cache.prune(tmp_path, limit=100)
    assert list(tmp_path.iterdir()) == []


def test_pruned_when_it_is_begun_to_be_used(tmp_path):
    old = tmp_path / "another-machine" / "x-cache"
    old.parent.mkdir()
    old.write_bytes(bytes(100))
    cache.use(str(tmp_path), limit=50)
    assert not old.exists()


def test_the_field(tmp_path):
    config = base.get_config()
    for value in ("auto", "", "~/x", str(tmp_path)):
        config.training.compilation_cache = value
        configs.freeze(config)
    config.training.compilation_cache = "off"
    with pytest.raises(UsageError, match=r"config\.training\.compilation_cache = off: expected auto, a folder"):
        configs.freeze(config)
    config.training.compilation_cache = ""
    saved = configs.freeze(base.get_config()).to_dict()
    assert len(resume.check(saved, configs.freeze(config), workdir=tmp_path, done=0)) == 1, (
        "it may be continued with another"
    )


SECOND_START = """
import sys
import dfm_jax, dfm_jax.flow
import jax, jax.monitoring
from dfm_jax.runtime import cache
assert not jax.config.jax_compilation_cache_dir, "an import has set it"
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
cache.use("auto")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 7)(1.0)
print(sum(name.endswith("cache_hits") for name in events))
"""


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])}

    def start():
        done = subprocess.run(
            [sys.executable, "-c", SECOND_START], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert start() == 0 and start() >= 1
