"""One run at a time in a folder, and a dead run locks nothing."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from dfm_jax.runtime import lock
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.lock import RunLock

HOLD = """
    import fcntl, os, sys, time
    if sys.argv[2] == "without":
        def flock(*words):
            raise OSError(int(sys.argv[3]), os.strerror(int(sys.argv[3])))
        fcntl.flock = flock
    from dfm_jax.runtime.lock import RunLock
    with RunLock(sys.argv[1]):
        if sys.argv[2] == "fork":
            reader, writer = os.pipe()
            if os.fork() == 0:
                os.close(1)
                os.write(writer, b"x")
                time.sleep(60)
            os.read(reader, 1)  # the child runs, and has let go of the lock
        print("held", flush=True)
        time.sleep(60)
"""


def hold(workdir, kind="plain", number=0):
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(workdir), kind, str(number)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("kind", ["plain", "fork"])
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, kind):
    holder = hold(tmp_path, kind)
    try:
        with pytest.raises(WorldError) as error, RunLock(tmp_path):
            pass
        assert str(error.value).startswith(
            f"workdir = {tmp_path}: expected a folder that no other run is using; process "
        )
        assert f"process {holder.pid} on " in str(error.value)
        holder.kill()  # a child that it forked lives on, without the lock
        holder.wait()
        with RunLock(tmp_path):
            pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(holder.pid, signal.SIGKILL)


def test_it_is_free_after_the_context_and_refuses_within_it(tmp_path):
    with RunLock(tmp_path):
        with pytest.raises(WorldError, match=f"process {os.getpid()}"), RunLock(tmp_path):
            pass
        with RunLock(tmp_path, process_index=1):  # the same run's other processes do not ask
            pass
    with RunLock(tmp_path):
        pass


def test_a_missing_folder_is_an_error(tmp_path):
    with (
        pytest.raises(WorldError, match=r"workdir = .*: No such file .*; expected a folder that can be written to"),
        RunLock(tmp_path / "no"),
    ):
        pass


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def without_locks(request, monkeypatch):
    """A file system without flock, for this process; the number is for those that it starts."""

    def flock(*words):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    monkeypatch.setattr(lock, "_said", set())
    return request.param


def test_without_locks_a_file_guards_and_this_is_said_once(without_locks, tmp_path, capsys):
    for _ in range(2):
        with RunLock(tmp_path), pytest.raises(WorldError, match=f"process {os.getpid()} on .*run.lock.guard"):
            RunLock(tmp_path).__enter__()
        assert not (tmp_path / "run.lock.guard").exists()
    said = capsys.readouterr().err
    assert said.count("has no locks") == 1 and os.strerror(without_locks) in said


def test_without_locks_a_killed_process_guards_nothing(without_locks, tmp_path):
    holder = hold(tmp_path, "without", without_locks)
    try:
        with pytest.raises(WorldError, match=f"process {holder.pid} on "), RunLock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    guard = tmp_path / "run.lock.guard"
    assert json.loads(guard.read_text())["pid"] == holder.pid
    with RunLock(tmp_path):
        assert json.loads(guard.read_text())["pid"] == os.getpid()
    assert not guard.exists()


def test_a_process_number_that_was_given_again_is_another_process(without_locks, tmp_path):
    with RunLock(tmp_path):
        left = json.loads((tmp_path / "run.lock.guard").read_text())
    (tmp_path / "run.lock.guard").write_text(json.dumps(left | {"started": "1"}))
    with RunLock(tmp_path):
        pass


def test_another_machine_is_believed_while_it_shows_signs_of_life(without_locks, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE", 0.4)
    monkeypatch.setattr(lock, "POLL", 0.05)
    guard = tmp_path / "run.lock.guard"
    holder = {"pid": 1, "host": "node7", "system": "another", "started": "5", "since": "now", "command": "main.py"}
    guard.write_text(json.dumps(holder))
    alive = threading.Event()

    def beat():
        while not alive.wait(0.02):
            os.utime(guard)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(WorldError, match=rf"process 1 on node7 .*remove {guard}"), RunLock(tmp_path):
            pass
    finally:
        alive.set()
        thread.join()
    with RunLock(tmp_path):  # it has fallen silent
        assert json.loads(guard.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, '{"system": 3, "pid": "x"}'])
def test_a_guard_that_is_no_guard_is_silent(without_locks, tmp_path, monkeypatch, content):
    monkeypatch.setattr(lock, "SILENCE", 0.1)
    monkeypatch.setattr(lock, "POLL", 0.05)
    (tmp_path / "run.lock.guard").write_text(content)
    with RunLock(tmp_path):
        pass


def test_the_holder_shows_signs_of_life_and_ends_when_another_has_the_folder(without_locks, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    ended = threading.Event()

    def leave(status):
        ended.status = status
        ended.set()

    monkeypatch.setattr(lock.os, "_exit", leave)
    guard = tmp_path / "run.lock.guard"
    with RunLock(tmp_path):
        before = guard.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while guard.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        guard.write_text(json.dumps({"pid": 1}))
        assert ended.wait(10) and ended.status == 1
    assert guard.exists()  # the other's


def test_a_machine_with_locks_keeps_away_from_a_guard(tmp_path):
    holder = hold(tmp_path, "without", errno.ENOSYS)
    try:
        with pytest.raises(WorldError, match=f"process {holder.pid} on "), RunLock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_a_guard_that_came_meanwhile_is_never_moved(tmp_path, monkeypatch):
    guard = lock.Guard(tmp_path / "run.lock.guard")
    guard.path.write_text("another's")
    monkeypatch.setattr(lock.os, "rename", lambda *paths: pytest.fail("moved"))
    guard._remove(b"the stale one's")
    guard.path.unlink()
    guard._remove(b"the stale one's")
    assert not guard.path.exists()


def test_one_after_the_other_without_locks(without_locks, tmp_path, monkeypatch):
    """`waiting`, which preparation uses: many at once, never two inside."""
    monkeypatch.setattr(lock, "POLL", 0.01)
    inside, most = [], []

    def work():
        with lock.waiting(tmp_path / "unit.lock"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
