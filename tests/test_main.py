"""The program from outside: bad input ends before any work, in one line on stderr, with the exit status of its kind."""

import errno
import os
import pathlib
import subprocess
import sys
from platform import libc_ver

import pytest

import programs
from dfm_jax import __main__, cli
from dfm_jax.data import prepare

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"
USAGE, WORLD = 2, 1


def run_main(folder: pathlib.Path, *words: str, devices: int = 1, **changes: str) -> subprocess.CompletedProcess:
    environment = programs.environment(XLA_FLAGS=programs.flags(devices), **changes)
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def run_here(monkeypatch, capsys):
    """As `run_main` in this process, which spares the imports of another."""

    def run(folder: pathlib.Path, *words: str) -> subprocess.CompletedProcess:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [str(ROOT / "main.py"), *words])
        status = __main__.main()
        return subprocess.CompletedProcess(words, status, *capsys.readouterr())

    return run


def assert_one_line(result: subprocess.CompletedProcess, status: int, *parts: str) -> None:
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and ("expected" in line or "expected" in line)
    for part in parts:
        assert part in line


def test_an_unknown_mode(tmp_path):
    assert_one_line(run_main(tmp_path, "--mode=fly"), USAGE, "mode = fly", "train")


def test_an_unknown_field(tmp_path, run_here):
    assert_one_line(
        run_here(tmp_path, QUICKSTART, "--config.optim.lrate=1"),
        USAGE,
        "config.optim.lrate = 1",
        "did you mean config.optim.lr?",
    )


def test_an_unknown_scheduler(tmp_path, run_here):
    result = run_here(tmp_path, QUICKSTART, "--config.flow.scheduler_type=cosine")
    assert_one_line(result, USAGE, "flow.scheduler_type", "cosine_md4")


def test_evaluation_without_a_run(tmp_path, run_here):
    assert_one_line(run_here(tmp_path, "--mode=eval"), USAGE, "workdir")


def test_a_batch_that_the_mesh_does_not_divide(tmp_path):
    result = run_main(tmp_path, QUICKSTART, "--config.training.batch_size=12", devices=8)
    assert_one_line(result, USAGE, "training.batch_size = 12", "multiples of 8")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data").exists()


@pytest.mark.parametrize("size", ["training.batch_size = 2000000000", "model.hidden_size = 2000000000"])
def test_a_size_that_no_machine_has(tmp_path, size, run_here):
    result = run_here(tmp_path, QUICKSTART, f"--config.{size.replace(' ', '')}")
    assert_one_line(result, USAGE, size, "GiB on each device", "GiB of memory")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data").exists()


SLOW = [pytest.param(platforms, marks=pytest.mark.slow) for platforms in ("nonsense", "tpu", "cpu,nonsense")]


@pytest.mark.parametrize("platforms", ["rocm", *SLOW])
def test_a_platform_that_is_not_here(tmp_path, platforms):
    result = run_main(tmp_path, QUICKSTART, JAX_PLATFORMS=platforms)
    assert_one_line(result, USAGE, f"JAX_PLATFORMS = {platforms}: ", "such as cpu")


@pytest.mark.slow
def test_a_mesh_that_does_not_fit_the_devices(tmp_path):
    assert_one_line(
        run_main(tmp_path, QUICKSTART, "--config.mesh.fsdp=3", devices=8), USAGE, "config.mesh", "8 devices"
    )


def test_a_folder_that_cannot_be_written_to(tmp_path, run_here):
    (tmp_path / "file").write_text("in the way")
    assert_one_line(run_here(tmp_path, QUICKSTART, "--workdir=file/run"), WORLD, "workdir = file/run")


def test_a_corpus_that_is_not_there(tmp_path, run_here):
    result = run_here(tmp_path, QUICKSTART, "--config.data.train=nowhere/*.txt")
    assert_one_line(result, WORLD, "data.train", "nowhere/*.txt")


def test_shards_of_another_tokenizer(tmp_path, run_here):
    (tmp_path / "text.txt").write_text("ten thousand bytes of the same text " * 300)
    shards = prepare(str(tmp_path / "text.txt"), "train", "bytes", tmp_path / "cache")
    result = run_here(tmp_path, QUICKSTART, f"--config.data.train={shards}", "--config.tokenizer.name=ids:300")
    assert_one_line(result, WORLD, "tokenizer", "bytes")


@pytest.mark.slow
def test_a_folder_with_another_run(tmp_path, run_here):
    fixture = ROOT / "tests" / "fixtures" / "checkpoint_uniform.pth"
    small = [f"--config.model.{n}={v}" for n, v in (("hidden_size", 32), ("cond_dim", 16), ("n_heads", 2))]
    same = [
        f"--config={ROOT}/configs/uniform_gkl.py",
        "--workdir=run",
        "--config.model.length=12",
        *small,
        "--config.tokenizer.name=ids:37",
    ]
    assert run_here(tmp_path, "--mode=import", f"--from={fixture}", *same, "--config.model.n_blocks=2").returncode == 0
    result = run_here(tmp_path, QUICKSTART, "--workdir=run")
    assert_one_line(result, WORLD, "workdir = run", "changed are", "model.hidden_size: 32 -> 128")


def test_output_that_nobody_reads_to_its_end(tmp_path):
    with subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""


def test_a_disk_error_anywhere_gives_one_line(monkeypatch, capsys):
    def full(command):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/quickstart/config.json")

    monkeypatch.setattr(cli, "run", full)
    monkeypatch.setattr(sys, "argv", ["main.py", QUICKSTART])
    assert __main__.main() == WORLD
    assert capsys.readouterr().err == (
        "error: runs/quickstart/config.json: No space left on device: expected a file that can be used\n"
    )


def test_a_flag_without_its_value(tmp_path, run_here):
    result = run_here(tmp_path, "--mode=sample", "--prompt")
    assert_one_line(result, USAGE, "prompt")


FAULTS = """
import resource, sys
from dfm_jax.__main__ import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import jax, jax.numpy as jnp
f, x = jax.jit(lambda x: [a + 1 for a in x]), [jnp.ones(500_000)] * 8
for _ in range(3):
    jax.block_until_ready(f(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    jax.block_until_ready(f(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or libc_ver()[0] != "glibc", reason="glibc's malloc is meant")
def test_a_program_on_a_processor_keeps_the_memory_of_its_arrays():
    def faults(word: str) -> int:
        command = [sys.executable, "-c", FAULTS, word]
        return int(
            subprocess.run(command, env=programs.environment(), text=True, capture_output=True, check=True).stdout
        )

    kept, given_back = faults("kept"), faults("given back")
    assert kept < given_back / 2, (kept, given_back)
