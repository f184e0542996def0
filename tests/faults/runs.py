"""Starting, disturbing and comparing small training runs, for the scripts and tests beside this file."""

import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.training import metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# The quickstart's network in small: seconds on one core. Every step is logged, and every third is a checkpoint.
TINY = {
    "training.batch_size": 8,
    "training.snapshot": 3,
    "training.eval_freq": 15,
    "optim.name": "adamw",
    "optim.warmup": 5,
    "optim.n_iters": 45,
    "optim.ema_decay": 0.9,
    "model.hidden_size": 32,
    "model.cond_dim": 16,
    "model.length": 32,
    "model.n_blocks": 2,
    "model.n_heads": 2,
    "model.dropout": 0.1,
    "eval.batch_size": 64,
    "eval.elbo": False,
    "eval.perplexity": False,
    "logging.log_freq": 1,
}
# Of the clock, and so of no two runs the same.
TIMES = ("train/step_time", "train/tokens_per_second", "train/mfu")


def command(workdir: pathlib.Path, cache: pathlib.Path, overrides: dict, *flags: str) -> list[str]:
    fields = {"data.cache_dir": cache, "data.num_workers": 1} | overrides
    return [
        *(
            sys.executable,
            str(ROOT / "main.py"),
            f"--config={ROOT / 'configs' / 'quickstart.py'}",
            f"--workdir={workdir}",
        ),
        *(f"--config.{field}={value}" for field, value in fields.items()),
        *flags,
    ]


def environment(devices: int = 1) -> dict[str, str]:
    """For a process of this program on so many simulated devices."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(places),
        "JAX_PLATFORMS": "cpu",
        "NPROC": "16",  # threads for every collective that simulated devices may be in at once
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
    }


class Run:
    """A started command. What it says goes to a file, so that it never waits for a reader."""

    def __init__(self, words: list[str], *, devices: int = 1):
        self._told = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the run
        # Its own session: killing the run means killing the workers that it started, as a lost machine does.
        self.process = subprocess.Popen(
            words, env=environment(devices), stdout=self._told, stderr=subprocess.STDOUT, start_new_session=True
        )

    def told(self) -> str:
        self._told.seek(0)
        return self._told.read()

    def wait(self, timeout: float = 600) -> int:
        return self.process.wait(timeout)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill_all(self, number: int) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
            self.process.wait()

    def wait_until(self, condition, timeout: float = 600) -> bool:
        """True when the condition holds; False when the run has ended first."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(self.told())
            time.sleep(0.002)
        return True


def finish(run: Run, status: int = 0) -> str:
    """Waits for the run's end, checks its exit status, and returns what it said."""
    assert run.wait() == status, run.told()
    return run.told()


def logged(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in metrics.read(workdir / "metrics.jsonl")]


def final_arrays(workdir: pathlib.Path) -> tuple[int, dict[str, np.ndarray]]:
    """Every array of the newest checkpoint, by name."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    newest = checkpoints.latest_step()
    assert newest is not None, f"{workdir} has no checkpoint"
    step, arrays = checkpoints.restore(checkpoints.arrays(newest))
    return step, jax.tree.map(np.asarray, arrays)


def assert_same_run(one: pathlib.Path, other: pathlib.Path, *, tolerance: float = 0.0) -> None:
    """The same final arrays and the same logged numbers: bitwise, or within `tolerance`."""
    (step, arrays), (other_step, other_arrays) = final_arrays(one), final_arrays(other)
    assert step == other_step and arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        if tolerance:
            np.testing.assert_allclose(array, other_arrays[name], rtol=0, atol=tolerance, err_msg=name)
        else:
            assert array.tobytes() == other_arrays[name].tobytes(), f"{name} differs"
    lines, other_lines = logged(one), logged(other)
    assert [(line["step"], list(line)) for line in lines] == [(line["step"], list(line)) for line in other_lines]
    for line, other_line in zip(lines, other_lines, strict=True):
        for name, value in line.items():
            same = value == other_line[name] or (
                tolerance and math.isclose(value, other_line[name], rel_tol=tolerance, abs_tol=tolerance)
            )
            assert same, f"step {line['step']}: {name} is {value} and {other_line[name]}"
