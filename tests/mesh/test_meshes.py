"""The same run on any mesh and any number of processes: simulated devices, and real processes over gloo."""

import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

import programs
from dfm_jax.models import sharding

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests" / "mesh" / "worker.py"
SLOW = ("8x1x1", "1x8x1", "1x2x4")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("cache")
    rng = np.random.default_rng(0)
    words = ["flow", "matching", "on", "a", "discrete", "state", "space", "is", "a", "jump", "process", "."]
    (folder / "text.txt").write_text("\n".join(" ".join(rng.choice(words, 12)) for _ in range(600)))
    return folder


def start(cache: pathlib.Path, name: str, mesh: str, *flags: str) -> tuple[subprocess.Popen, pathlib.Path]:
    out = cache / f"{name}.npz"
    command = [sys.executable, str(WORKER), str(out), str(cache), mesh, *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=programs.environment())
    return process, out


def finish(*started: tuple[subprocess.Popen, pathlib.Path]) -> dict[str, np.ndarray]:
    for process, _ in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    return dict(np.load(started[0][1]))


def run(cache: pathlib.Path, name: str, mesh: str, *flags: str) -> dict[str, np.ndarray]:
    return finish(start(cache, name, mesh, *flags))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run_processes(
    cache: pathlib.Path, name: str, mesh: str, count: int, devices: int, *flags: str
) -> dict[str, np.ndarray]:
    flags = (f"--devices={devices}", f"--coordinator=localhost:{free_port()}", f"--num_processes={count}", *flags)
    return finish(*(start(cache, f"{name}-{i}", mesh, *flags, f"--process_id={i}") for i in range(count)))


@pytest.fixture(scope="module")
def alone(cache) -> dict[str, np.ndarray]:
    return run(cache, "alone", "1x1x1", "--devices=1")


def assert_same_run(result: dict[str, np.ndarray], alone: dict[str, np.ndarray]) -> None:
    for name, value in alone.items():
        if name.startswith("noise/"):
            np.testing.assert_array_equal(result[name], value, err_msg=name)
        elif name.startswith("model/"):
            np.testing.assert_allclose(result[name], value, rtol=0, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(result["losses"], alone["losses"], rtol=1e-5)
    assert result["traces"] == 1


@pytest.mark.parametrize("mesh", ["2x2x2", *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in SLOW)])
def test_a_mesh_changes_nothing(mesh, cache, alone):
    assert_same_run(run(cache, mesh, mesh), alone)


@pytest.mark.slow
def test_our_attention_on_a_mesh_is_the_compilers_on_one_device(cache):
    wide = ("--config.model.hidden_size=128", "--config.model.length=16", "--config.data.num_workers=1")
    definition = run(cache, "xla", "1x1x1", "--devices=1", *wide)
    assert_same_run(run(cache, "pallas", "2x2x2", "--config.model.attention=pallas", *wide), definition)


@pytest.mark.slow
@pytest.mark.parametrize("name, source", [("three_term", "mask"), ("metric", "uniform")])
def test_other_paths_on_a_mesh(name, source, cache):
    fields = [f"flow.path={name}", f"flow.source_distribution={source}", "flow.loss_function=cross_entropy"]
    # Kept positions: the devices' rows predict different numbers of tokens, and a mean of means would be another loss.
    fields += ["flow.coupling=conditional"]
    fields += ["model.parametrization=posterior", "flow.time_law=uniform", "model.length=16", "data.num_workers=1"]
    flags = [f"--config.{field}" for field in fields]
    definition = run(cache, f"{name}-alone", "1x1x1", "--devices=1", *flags)
    assert_same_run(run(cache, f"{name}-mesh", "2x2x2", *flags), definition)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_optimizers_on_a_mesh(name, cache):
    """A matrix that Muon makes orthogonal is split over fsdp and tensor, and so is the state."""
    flags = [f"--config.optim.name={name}", "--config.model.hidden_size=128", "--config.data.num_workers=1"]
    definition = run(cache, f"{name}-alone", "1x1x1", "--devices=1", *flags)
    result = run(cache, f"{name}-mesh", "2x2x2", *flags)
    assert_same_run(result, definition)
    for part, (local, whole) in ((n, value) for n, value in result.items() if n.startswith("bytes/opt_state")):
        assert whole < 4 * sharding.MIN_SIZE or local <= whole / 2, part


@pytest.mark.slow
@pytest.mark.parametrize("mesh, count, devices", [("8x1x1", 2, 4), ("2x2x1", 4, 1)])
def test_processes_change_nothing(mesh, count, devices, cache, alone):
    assert_same_run(run_processes(cache, f"{count}-processes", mesh, count, devices), alone)


@pytest.mark.slow
def test_a_mixture_of_text_and_records_on_two_processes(cache):
    chat = cache / "chat.jsonl"
    rows = ({"q": f"{n} and {n % 7}? ", "a": f"{n + n % 7}"} for n in range(200))
    chat.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = f"--config.data.train={cache / 'text.txt'}=0.7,{chat}:prompt=q:response=a=0.3"
    flags = (mixture, "--config.flow.coupling=conditional", "--config.data.num_workers=1")
    definition = run(cache, "mixture-alone", "1x1x1", "--devices=1", *flags)
    assert_same_run(run_processes(cache, "mixture", "4x1x1", 2, 2, *flags), definition)


@pytest.mark.slow
def test_accumulation_is_the_large_batch(cache, alone):
    result = run(cache, "accumulated", "2x1x1", "--devices=2", "--config.training.grad_accum=4")
    assert_same_run(result, alone)


@pytest.mark.slow
def test_fsdp_holds_an_eighth_of_everything_large(cache):
    wide = ("--config.model.hidden_size=256", "--config.model.cond_dim=64")
    result = run(cache, "fsdp", "1x8x1", *wide)
    shares = {name: value for name, value in result.items() if name.startswith("bytes/")}
    large = {name: value for name, value in shares.items() if value[1] >= 4 * sharding.MIN_SIZE}
    assert any("opt_state" in name for name in large) and any("ema" in name for name in large)
    for name, (local, whole) in large.items():
        assert local == whole / 8, name
    total = np.sum(list(shares.values()), axis=0)
    assert total[0] < 0.16 * total[1]
