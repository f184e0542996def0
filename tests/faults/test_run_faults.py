"""Whole runs that are killed, stopped, damaged, poisoned and started twice.

Thirty kills of a run of the quickstart size:
`PYTHONPATH=. python tests/faults/kill_runs.py FOLDER`. Here is a shorter form.
"""

import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import runs
from dfm_jax import cli, flow
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.cli import command_line
from dfm_jax.training import metrics
from dfm_jax.training import step as step_module

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A run that was left alone, and the corpus that it prepared."""
    folder = tmp_path_factory.mktemp("quiet")
    runs.finish(runs.Run(runs.command(folder / "run", folder / "data", runs.TINY)))
    return folder


def lines(workdir: pathlib.Path) -> int:
    return len(metrics.read(workdir / "metrics.jsonl"))


def test_kill_9_at_random_moments_changes_nothing(quiet, tmp_path):
    words = [str(HERE / "kill_runs.py"), str(tmp_path), "--tiny", "--kills=5", f"--quiet={quiet / 'run'}"]
    done = subprocess.run([sys.executable, *words], env=runs.environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills; step 45: " in done.stdout and "bitwise equal" in done.stdout


def test_sigterm_a_second_run_and_a_damaged_checkpoint(quiet, tmp_path):
    """Stopped by SIGTERM, continued over damage, refused a second time meanwhile: and still the same run."""
    workdir = tmp_path / "run"
    words = runs.command(workdir, quiet / "data", runs.TINY)
    run = runs.Run(words)
    assert run.wait_until(lambda: lines(workdir) >= 7)
    run.signal(signal.SIGSTOP)  # it must not be done before the second has started
    told = runs.finish(runs.Run(words), status=1)
    assert told.splitlines()[-1].startswith(f"error: workdir = {workdir}: expected a folder that no other run is using")
    assert f"process {run.process.pid} on " in told
    run.signal(signal.SIGTERM)
    run.signal(signal.SIGCONT)
    told = runs.finish(run)
    stopped = Checkpoints(workdir / "checkpoints").latest_step()
    assert stopped is not None and 7 <= stopped < 45
    assert "SIGTERM: " in told and f"stopped at step {stopped} of 45" in told and "the same command" in told
    assert runs.logged(workdir)[-1]["step"] == stopped

    checkpoint = workdir / "checkpoints" / str(stopped)
    largest = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    told = runs.finish(runs.Run(words))
    assert f"warning: checkpoint {stopped} in {workdir / 'checkpoints'} is damaged" in told
    assert f"continues from step {(stopped - 1) // 3 * 3}" in told
    runs.assert_same_run(quiet / "run", workdir)

    told = runs.finish(runs.Run(words))  # finished already
    assert "Traceback" not in told
    runs.assert_same_run(quiet / "run", workdir)

    other = runs.command(workdir, quiet / "data", runs.TINY | {"model.hidden_size": 64, "training.snapshot": 4})
    last = runs.finish(runs.Run(other), status=1).splitlines()[-1]
    assert last.startswith(f"error: workdir = {workdir}: expected the config that its run was begun with")
    assert last.endswith("; changed are model.hidden_size: 32 -> 64")


def test_an_evaluation_that_was_cut_short_is_made_up_for(quiet, tmp_path):
    """Killed after the last checkpoint and before its evaluation: the same command evaluates, and trains no more."""
    workdir = tmp_path / "run"
    shutil.copytree(quiet / "run", workdir)
    path = workdir / "metrics.jsonl"
    *kept, last = path.read_text().splitlines(keepends=True)
    assert '"eval/loss"' in last
    path.write_text("".join(kept))
    runs.finish(runs.Run(runs.command(workdir, quiet / "data", runs.TINY)))
    runs.assert_same_run(quiet / "run", workdir)


def test_from_one_process_to_two_and_back(quiet, tmp_path):
    """8 devices in 1 process, in 2, in 1 again, changing over at signals that reach one process only."""
    overrides = runs.TINY | {"mesh.data": 4, "mesh.fsdp": 2, "optim.n_iters": 14, "optim.lr": 3e-4}

    def start(workdir: pathlib.Path, processes: int) -> list[runs.Run]:
        words = runs.command(workdir, quiet / "data", overrides)
        if processes == 1:
            return [runs.Run(words, devices=8)]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        flags = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
        return [runs.Run([*words, *flags, f"--process_id={i}"], devices=8 // processes) for i in range(processes)]

    alone, moved = tmp_path / "alone", tmp_path / "moved"
    (run,) = start(alone, 1)
    runs.finish(run)
    for processes, until in ((1, 3), (2, 8)):
        group = start(moved, processes)
        assert group[0].wait_until(lambda until=until: lines(moved) >= until)
        group[-1].signal(signal.SIGTERM)
        for run in group:
            assert "Traceback" not in runs.finish(run)
    (run,) = start(moved, 1)
    runs.finish(run)
    runs.assert_same_run(alone, moved, tolerance=1e-5)
    assert runs.final_arrays(moved)[0] == 14  # the last step is saved, though no multiple of training.snapshot


def test_parameters_that_are_not_finite_stop_the_run(quiet, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(quiet / "run", workdir)
    step, arrays = runs.final_arrays(workdir)
    name = max((name for name in arrays if name.startswith("model.")), key=lambda name: arrays[name].size)
    arrays[name] = np.full_like(arrays[name], np.nan)
    with Checkpoints(workdir / "checkpoints", keep_last=2) as checkpoints:
        checkpoints.save(
            step, {name: jnp.asarray(array) for name, array in arrays.items()}, metadata=checkpoints.metadata()
        )
    overrides = runs.TINY | {"optim.n_iters": 60, "training.max_bad_steps": 4}
    told = runs.finish(runs.Run(runs.command(workdir, quiet / "data", overrides)), status=1)
    last = told.splitlines()[-1]
    assert last.startswith("error: config.training.max_bad_steps = 4: ") and f"step {step + 4}" in last
    assert "the last good checkpoint is step 42" in last and "optim.lr" in last
    assert f"checkpoint {step} is kept as {step}.diverged" in told
    assert told.count("the update was skipped") == 4 and "Traceback" not in told
    assert [line["train/bad_steps"] for line in runs.logged(workdir) if line["step"] > step] == [1, 2, 3, 4]


def test_a_batch_that_is_not_finite_is_skipped(quiet, tmp_path, monkeypatch, capfd):
    """Update 7 sees times that are NaN. It changes nothing, is said and logged, and the run goes on."""
    healthy = step_module.corrupt

    def poisoned(rows, step, *rest, **options):
        batch = healthy(rows, step, *rest, **options)
        time = flow.Time(*(jnp.where(jnp.equal(step, 6), jnp.nan, part) for part in batch.time))
        return batch._replace(time=time)

    monkeypatch.setattr(step_module, "corrupt", poisoned)
    workdir = tmp_path / "run"
    overrides = runs.TINY | {"optim.n_iters": 9, "training.snapshot": 1, "checkpoint.keep_last": 9}
    words = runs.command(workdir, quiet / "data", overrides)
    assert cli.run(command_line.parse(words[1:])) == 0
    assert "step 7: loss nan" in capfd.readouterr().err
    logged = {line["step"]: line for line in runs.logged(workdir) if "train/loss" in line}
    assert logged[7]["train/loss"] is None and logged[7]["train/bad_steps"] == 1
    assert all(logged[step]["train/bad_steps"] == 0 and logged[step]["train/loss"] > 0 for step in (6, 8, 9))
    checkpoints = Checkpoints(workdir / "checkpoints")
    assert checkpoints.steps() == [1, 2, 3, 4, 5, 6, 8, 9]
    before, after = (checkpoints.restore(checkpoints.arrays(step), step)[1] for step in (6, 8))
    counts = [name for name in before if name.startswith("opt_state.") and name.endswith("count")]
    assert counts and all(int(after[name]) == int(before[name]) + 1 for name in counts)
    assert int(after["step"]) == 8 and int(after["bad_steps"]) == 0
    assert any((np.asarray(after[name]) != np.asarray(x)).any() for name, x in before.items() if "model." in name)
