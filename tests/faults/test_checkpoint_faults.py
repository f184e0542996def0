"""Checkpoints under kill -9, on a full disk, and on other meshes and process counts."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import runs
from dfm_jax.checkpoints.store import Checkpoints

HERE = pathlib.Path(__file__).resolve().parent


def start(script: str, *arguments, devices: int = 1) -> subprocess.Popen:
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(
        command, env=runs.environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*processes: subprocess.Popen, timeout: float = 120) -> list[tuple[str, str]]:
    told = [process.communicate(timeout=timeout) for process in processes]
    for process, (_, err) in zip(processes, told, strict=True):
        assert process.returncode == 0, err
    return told


def test_kill_9_in_the_middle_of_saves(tmp_path):
    told = finish(start("kill_saves.py", tmp_path, "--kills=8"))
    assert "8 kills" in told[0][0] and "none lost or wrong" in told[0][0]


def test_a_full_disk_costs_one_checkpoint(tmp_path):
    """On a tmpfs of 12 MB, in a mount namespace of its own."""
    inside = f"mount -t tmpfs -o size=12m none {tmp_path} && exec {sys.executable} {HERE / 'full_disk.py'} {tmp_path}"
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "mount", "-t", "tmpfs", "none", tmp_path]).returncode:
        pytest.skip("this machine does not let a user mount a tmpfs in a namespace")
    done = subprocess.run(
        [*namespace, "sh", "-c", inside], env=runs.environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "CHECKPOINT 3 WAS NOT SAVED" in done.stderr and "the newest complete one is 2" in done.stderr
    assert "CHECKPOINT 4 WAS NOT SAVED" in done.stderr and "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr  # a line each, and nothing of orbax's own


@pytest.mark.slow
def test_other_meshes_and_process_counts_continue(tmp_path):
    def processes(data, fsdp, count):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        return [
            start("restore_elsewhere.py", tmp_path, data, fsdp, i, count, port, devices=data * fsdp // count)
            for i in range(count)
        ]

    assert "restored 0, saved 1" in finish(start("restore_elsewhere.py", tmp_path, 2, 4, devices=8))[0][0]
    told = finish(*processes(4, 2, 2))
    assert all(f"process {i} of 2, 4 x 2: restored 1, saved 2" in told[i][0] for i in range(2))
    # Process 0 finds the damage, and the other follows it to the one before.
    largest = max((p for p in (tmp_path / "2").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    told = finish(*processes(1, 8, 2))
    assert all("restored 1, saved 2" in out for out, _ in told)
    assert "checkpoint 2 in" in told[0][1] and "damaged" not in told[1][1]
    assert (tmp_path / "2.damaged").is_dir()
    # Here, on one device.
    abstract = {
        "step": jax.ShapeDtypeStruct((), np.int32),
        "kernel": jax.ShapeDtypeStruct((16, 64), np.float32),
        "stack": jax.ShapeDtypeStruct((3, 64, 8), np.float32),
    }
    step, state = Checkpoints(tmp_path).restore(abstract)
    assert step == 2 == int(state["step"])
    np.testing.assert_array_equal(state["kernel"], np.random.default_rng(2).normal(size=(16, 64)).astype(np.float32))
