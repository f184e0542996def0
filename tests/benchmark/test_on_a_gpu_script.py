"""benchmarks/on_a_gpu.py: its parts, their time, and a rehearsal on a processor."""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import programs
from benchmarks import on_a_gpu

ROOT = programs.ROOT


def arguments(folder):
    return argparse.Namespace(folder=folder, config="configs/uniform_gkl.py", minutes=9.0, dry=False)


def test_the_parts_share_the_time_and_measure_what_there_is():
    from configs import uniform_gkl
    from dfm_jax.benchmarking import cases
    from dfm_jax.config import freeze

    assert sum(part.share for part in on_a_gpu.PARTS) == pytest.approx(1)
    assert sum(part.share for part in on_a_gpu.DRY) == pytest.approx(1)
    config = freeze(uniform_gkl.get_config())
    names = [case for part in on_a_gpu.PARTS if part.benchmark for case in cases.chosen(part.benchmark, config, "gpu")]
    # Preparing a corpus needs no GPU.
    assert set(names) == set(cases.chosen(None, config, "gpu")) - {cases.Case("prepare")}
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_the_parts_hold_every_test_once(tmp_path):
    command = on_a_gpu.command(on_a_gpu.PARTS[1], arguments(tmp_path), 100.0)
    assert command[command.index("-m", 3) + 1] == "gpu" and command[-1] == str(ROOT / "tests" / "gpu")
    found = []
    for part in on_a_gpu.PARTS:
        if part.tests:
            words = [sys.executable, "-m", "pytest", "-n", "0", "--collect-only", "-q", "-m", "gpu", "-k", part.tests]
            done = subprocess.run([*words, str(ROOT / "tests" / "gpu")], capture_output=True, text=True, check=False)
            found.append({line for line in done.stdout.splitlines() if "::" in line})
    first, second = found
    assert first and second and not first & second
    assert len(first | second) == 13 and any("one_update" in name for name in first)


@pytest.mark.slow
def test_a_part_at_its_end_is_stopped_with_what_it_started_and_named(tmp_path, monkeypatch):
    script = (
        "import subprocess, time\n"
        "print(subprocess.Popen(['sleep', '100']).pid, flush=True)\n"
        "try:\n    time.sleep(100)\nexcept KeyboardInterrupt:\n    print('what it had', flush=True)\n"
    )
    monkeypatch.setattr(on_a_gpu, "command", lambda *args: [sys.executable, "-c", script])
    part = on_a_gpu.Part("2-kernel-tests", 0.5, tests="attention")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ended = on_a_gpu.run(part, arguments(tmp_path), 8.0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended["ended"] == "stopped after 8 s" and not ended["well"]
    pid, said = (tmp_path / "2-kernel-tests.txt").read_text().splitlines()
    assert said == "what it had"
    deadline = time.monotonic() + 5  # a killed orphan is gone once init has waited for it
    while (stat := pathlib.Path(f"/proc/{pid}/stat")).exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
    facts = {"card": "NVIDIA H200", "date": "today", "commit": "abc", "versions": {"jax": "1"}}
    on_a_gpu.summary(arguments(tmp_path), facts, [ended])
    page = (tmp_path / "summary.md").read_text()
    assert "stopped after 8 s" in page and "no test came to its end" in page


@pytest.mark.slow
def test_a_rehearsal(tmp_path):
    """`--dry`: every part at a toy size, and the folder that it leaves."""
    command = [sys.executable, str(ROOT / "benchmarks" / "on_a_gpu.py"), "--dry", "--minutes=9", f"--folder={tmp_path}"]
    env = programs.environment(JAX_PLATFORMS="cpu")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "summary.md").read_text()
    found = json.loads((tmp_path / "summary.json").read_text())
    assert [part["ended"] for part in found["parts"]] == ["exit status 0"] * 4
    assert {row["benchmark"] for row in found["rows"]} == {"train", "loader"} and found["left_out"] == {}
    assert len(found["tests"]) == 3 and all(line.startswith("PASSED") for line in found["tests"])
    assert found["about"]["versions"]["jax"] and found["about"]["date"]
    assert {"about.json", "nvidia-smi.txt", "summary.md", "1-step", "1-step.txt", "2-kernel-tests.txt"} <= {
        path.name for path in tmp_path.iterdir()
    }
