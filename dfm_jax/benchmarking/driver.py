"""Measuring cases one after the other, each in a process of its own, within a budget of seconds."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from dfm_jax import config as configs
from dfm_jax.benchmarking.cases import Case
from dfm_jax.config import Config
from dfm_jax.data import vocabulary_size
from dfm_jax.runtime.errors import UsageError, WorldError

LEAST = 5.0  # seconds: with less left no case is begun, as a process takes them to start
TO_END = 5.0  # seconds that a process has between being asked to end and being ended


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one process said: rows and missing ones as dictionaries, its seconds, and why it ended early, if it did."""

    lines: list[dict[str, Any]]
    seconds: float
    reason: str = ""

    def of(self, kind: str) -> list[Any]:
        return [line[kind] for line in self.lines if kind in line]


class Budget:
    """Seconds from now on; None is without end."""

    def __init__(self, seconds: float | None):
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        return None if self._end is None else self._end - time.monotonic()

    def spent(self) -> bool:
        left = self.left()
        return left is not None and left < LEAST

    def describe(self) -> str:
        return f"the {self.seconds or 0:.0f} seconds that were given are over"


def run_case(
    case: Case | None, config: Config, *, answer: pathlib.Path, log: pathlib.Path, trace: str | None, budget: Budget
) -> Outcome:
    """One child, to its end or to that of the budget; with `case` None it describes the machine.

    answer: the file of lines that it appends to. log: where what it prints goes.

    Raises:
        UsageError: it says that the command is wrong.
    """
    started, begin = time.monotonic(), answer.stat().st_size if answer.is_file() else 0
    request = {
        "case": None if case is None else dataclasses.asdict(case),
        "config": configs.to_json(config),
        "vocab_size": vocabulary_size(config.tokenizer.name),
        "trace": trace,
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, log.open("w", encoding="utf-8") as told:
        asked = pathlib.Path(folder, "request.json")
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "dfm_jax.benchmarking.child", str(asked), str(answer)]
        status = run_to_end(command, environment(case), told, budget.left())
    with answer.open("rb") as file:
        file.seek(begin)
        # The last line of a process that was ended may be half a line.
        lines = [json.loads(line) for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
    outcome = Outcome(lines, time.monotonic() - started)
    for text in outcome.of("usage"):
        raise UsageError(text)
    if status is None:
        return dataclasses.replace(outcome, reason=f"ended after {outcome.seconds:.0f} s: {budget.describe()}")
    if not any(outcome.of(kind) for kind in ("done", "machine", "no_device")):
        last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
        reason = f"its process ended with status {status}: {' '.join(last)[-300:]}".replace("|", "/")
        return dataclasses.replace(outcome, reason=reason)
    return outcome


def run_to_end(command: list[str], env: dict[str, str], told: Any, timeout: float | None) -> int | None:
    """The command's exit status, or None where it was ended at `timeout`. It and what it started end with this call."""
    # A session of its own: what it starts (the loader's workers, PyTorch's) is ended with it.
    child = subprocess.Popen(command, env=env, stdout=told, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        with interrupted_by_sigterm():
            return child.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_group(child)


def end_group(child: "subprocess.Popen[Any]") -> None:
    """Asks the processes of the child's session to end, and ends them."""
    for number, patience in ((signal.SIGTERM, TO_END), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM is as ^C here: what was started is ended on the way out. (Signals belong to the main thread.)

    Also where SIGINT itself is ignored, as in what a script starts with `&`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def environment(case: Case | None) -> dict[str, str]:
    """A child's: this package importable, and compiled programs not taken from a cache, as their time is measured."""
    root = str(pathlib.Path(__file__).resolve().parent.parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if case is None or case.benchmark.startswith("pytorch"):
        # Others use the device too: the pool grows as it is needed.
        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return env


def describe_machine(config: Config, answer: pathlib.Path, log: pathlib.Path, budget: Budget) -> dict[str, Any]:
    """What a child sees: this process must not take the device's memory.

    Raises:
        WorldError: the child could not say it, for example because JAX finds no device.
    """
    outcome = run_case(None, config, answer=answer, log=log, trace=None, budget=budget)
    for about in outcome.of("machine"):
        return about
    reason = "; ".join(outcome.of("no_device")) or outcome.reason
    raise WorldError(f"mode = benchmark: expected a device that JAX can use; {reason}")
