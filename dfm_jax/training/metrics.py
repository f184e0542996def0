"""The metrics of a run: `metrics.jsonl`, TensorBoard and Weights & Biases. Each continues when the run is resumed."""

import json
import math
import os
import pathlib
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any

from dfm_jax.runtime import files
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.terminal import warn

FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes each step's scalars to `workdir/metrics.jsonl`, `workdir/tensorboard` and, if asked, W&B.

    A line of `metrics.jsonl` is one JSON object, `step` first. The operating system has the line when `write` returns,
    so a killed process loses no line. NaN and infinities, which JSON lacks, are written as null.

    When a run is resumed from the checkpoint of step `resume_step`, later lines and a torn last line are removed, as
    these steps are computed again. TensorBoard is told to forget them. W&B keeps its first values of those steps, which
    are the same.

    A full disk is reported once. Lines then wait in memory until there is room, and no line is torn.

    Args:
      workdir: the run's folder.
      resume_step: updates held by the checkpoint that the run continues from; 0 = a new run.
      tensorboard: also write `workdir/tensorboard`.
      wandb: keyword arguments of `wandb.init` (project, name, config, mode, ...), or None = without it. The run's
        id is kept in `workdir/wandb_id`, so that every part of a run is one run there.
      enabled: False for all processes but one; they write nothing.

    Attributes:
      logged: the names that have been logged for `resume_step` itself, from which the loop sees what is missing.

    Raises:
      UsageError: W&B is wanted and not installed.
      WorldError: W&B does not start.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int = 0,
        tensorboard: bool = True,
        wandb: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ):
        workdir = pathlib.Path(workdir)
        self._sinks: list[Any] = []
        self.logged: frozenset[str] = frozenset()
        self._earlier: list[dict[str, Any]] = []
        if not enabled:
            return
        if wandb is not None:
            self._sinks.append(_WandB(workdir, wandb))
        path = workdir / FILE
        cut(path, resume_step)
        self._earlier = read(path)
        self.logged = frozenset(name for line in self._earlier if line["step"] == resume_step for name in line) - {
            "step"
        }
        self._sinks.append(_Lines(path))
        if tensorboard:
            self._sinks.append(_TensorBoard(workdir / "tensorboard", resume_step))

    def before(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a name in the lines up to `resume_step`, without nulls."""
        return series(self._earlier, name)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs scalars under their names, such as "train/loss", for `step` (updates applied)."""
        scalars = {name: _scalar(value) for name, value in values.items()}
        for sink in self._sinks:
            sink.write(step, scalars)

    def close(self) -> None:
        """Closes all files and the W&B run."""
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, oldest first, without a torn last line; empty if there is no file."""
    try:
        text = pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for line in text.split(b"\n")[:-1]:  # what follows the last line break is torn
        try:
            values = json.loads(line)
            if isinstance(values["step"], int):
                lines.append(values)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return lines


def series(lines: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of a name in lines of `read`, without nulls."""
    return [(line["step"], line[name]) for line in lines if isinstance(line.get(name), (int, float))]


def cut(path: str | os.PathLike, step: int) -> None:
    """Removes from a `metrics.jsonl` every line after `step` and every torn line, atomically."""
    path = pathlib.Path(path)
    if not path.exists():
        return
    kept = "".join(_line(values) for values in read(path) if values["step"] <= step)
    if kept.encode() != path.read_bytes():
        files.write_atomically(path, kept, durable=True)


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"


def _scalar(value: Any) -> float | int:
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int) else float(value)


class _Lines:
    """Appends lines to a file, each whole or not at all."""

    def __init__(self, path: pathlib.Path):
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  open for the whole run
        self._end = self._file.seek(0, os.SEEK_END)
        self._waiting = b""
        self._warned = False

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._waiting += _line({"step": step, **finite}).encode()
        self._flush()

    def _flush(self) -> None:
        try:
            written = self._file.write(self._waiting)
            if written != len(self._waiting):
                raise OSError(None, f"{written} of {len(self._waiting)} bytes written")
        except OSError as error:
            self._file.truncate(self._end)
            if not self._warned:
                self._warned = True
                warn(f"{self._file.name}: not written ({error.strerror}); the lines wait until there is room")
            return
        self._end += len(self._waiting)
        self._waiting = b""
        self._warned = False

    def close(self) -> None:
        if self._waiting:
            self._flush()
        self._file.close()


class _TensorBoard:
    """An events file, written in the caller's thread.

    tensorboardX's SummaryWriter writes in a thread. A full disk kills the thread, and its queue then blocks.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._warned = False
        # The process in the name: a run killed and restarted within a second must not overwrite its file.
        self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        start = SessionLog(status=SessionLog.START)
        self._send(self._event(step=resume_step + 1, session_log=start))  # forget what follows resume_step

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._send(self._event(step=step, summary=Summary(value=values)))

    def _send(self, event: Any) -> None:
        event.wall_time = time.time()
        try:
            self._events.write_event(event)
            self._events.flush()
        except OSError as error:
            if not self._warned:
                self._warned = True
                warn(f"tensorboard: not written ({error.strerror})")

    def close(self) -> None:
        try:
            self._events.close()
        except OSError as error:
            warn(f"tensorboard: not written ({error.strerror})")


class _WandB:
    def __init__(self, workdir: pathlib.Path, settings: Mapping[str, Any]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UsageError(
                "config.logging.enable_wandb = True: expected with the wandb package (pip install wandb)"
            ) from None
        id_file = workdir / "wandb_id"
        if not id_file.exists():
            files.write_atomically(id_file, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                dir=str(workdir), id=id_file.read_text(encoding="utf-8").strip(), resume="allow", **settings
            )
        except (wandb.Error, OSError) as error:
            raise WorldError(
                "config.logging.enable_wandb = True: expected a W&B login, or WANDB_MODE=offline "
                f"({str(error).splitlines()[0]})"
            ) from None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()
