"""`--mode=eval` in two processes with a device each: one report, and the figures and samples of one process."""

import json
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

import programs

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "fixtures" / "checkpoint_uniform.pth"
# Of the file; 37 tokens without a text.
MODEL = {"model.hidden_size": 32, "model.cond_dim": 16, "model.length": 12, "model.n_blocks": 2, "model.n_heads": 2}
MODEL |= {"tokenizer.name": "ids:37"}
SETTINGS = {"eval.batch_size": 6, "eval.time_points": 4, "eval.num_samples": 5, "eval.judge": "", "sampling.steps": 4}


def start(folder: pathlib.Path, devices: int, *words: str, **fields) -> subprocess.Popen:
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *words, *settings],
        cwd=folder,
        env=programs.environment(XLA_FLAGS=programs.flags(devices)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen) -> list[str]:
    """What each printed."""
    told = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, told, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [output for output, _ in told]


def test_two_processes_evaluate_as_one(tmp_path):
    rng = np.random.default_rng(0)
    # 11 blocks in batches of 6: the last one is filled up, and a process has rows of both kinds.
    (tmp_path / "ids.txt").write_text(" ".join(map(str, rng.integers(0, 37, 11 * 12 + 5))))
    corpus = {"data.valid": "ids.txt", "eval.corpora": "ids.txt"}
    config = f"--config={ROOT}/configs/uniform_gkl.py"
    finish(
        start(tmp_path, 1, "--mode=import", f"--from={FILE}", config, "--workdir=one", **MODEL, **SETTINGS, **corpus)
    )
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    finish(start(tmp_path, 2, "--mode=eval", "--workdir=one"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = ["--mode=eval", "--workdir=two", f"--coordinator=localhost:{port}", "--num_processes=2"]
    first, second = finish(*(start(tmp_path, 1, *flags, f"--process_id={i}") for i in range(2)))
    assert "## Likelihood" in first and "## Likelihood" not in second

    one, two = (json.loads((tmp_path / name / "eval" / "step_7.json").read_text()) for name in ("one", "two"))
    assert two["provenance"]["devices"].endswith("in 2 processes") and two["missing"] == []
    entry, other = one["likelihood"]["ids.txt"], two["likelihood"]["ids.txt"]
    assert entry["blocks"] == other["blocks"] == 11
    for name in ("nats_per_token", "stderr", "perplexity"):
        assert other[name] == pytest.approx(entry[name], rel=1e-5)
    assert one["generation"] == two["generation"] and two["generation"]["samples"] == 5
    samples = [(tmp_path / name / "samples" / "step_7.jsonl").read_text() for name in ("one", "two")]
    assert samples[0] == samples[1] and len(list((tmp_path / "two" / "samples").iterdir())) == 3
