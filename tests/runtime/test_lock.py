"""One run at a time in a folder, and a dead run locks nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.lock import RunLock

HOLD = """
    import os, sys, time
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


def hold(workdir, kind="plain"):
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(workdir), kind]
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
            f"workdir={tmp_path}: accepted a folder that no other run is using; process "
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
        pytest.raises(WorldError, match=r"workdir=.*: accepted a folder that can be written to"),
        RunLock(tmp_path / "no"),
    ):
        pass
