"""What a run says on the terminal: lines, and how far it is."""

import os
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


def note(line: str) -> None:
    """Writes a line to stderr, above a progress bar if there is one."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def warn(line: str) -> None:
    """As `note`, marked as a warning."""
    note(f"warning: {line}")


def command(flags: Mapping[str, Any]) -> str:
    """A command of this program that a shell understands, started as this one was: {"workdir": "my run"} ->
    `python main.py --workdir='my run'`."""
    started = sys.argv[0] if sys.argv else ""
    program = shlex.quote(started) if pathlib.Path(started).name == "main.py" else "-m dfm_jax"
    return " ".join(["python", program, *(f"--{name}={shlex.quote(str(value))}" for name, value in flags.items())])


class Progress:
    """Step, loss, tokens per second and time left: a bar on a terminal, else a plain line every `every` steps.

    Args:
      total: the run's steps.
      start: steps that were done before, in an earlier part of the run; they do not count for the time left.
      every: steps between plain lines; the last step always has one.
      enabled: False for every process but one.
    """

    def __init__(self, *, total: int, start: int = 0, every: int = 1, enabled: bool = True):
        self._total = total
        self._every = every
        self._enabled = enabled
        self._start = start
        self._last_line = start
        self._began = time.monotonic()
        self._bar: tqdm | None = None
        if enabled and sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns:
            self._bar = tqdm(
                total=total,
                initial=start,
                dynamic_ncols=True,
                unit="step",
                bar_format="{percentage:3.0f}% {bar} step {n_fmt}/{total_fmt}{postfix}, {remaining} left",
            )

    def update(self, step: int, *, loss: float, tokens_per_second: float) -> None:
        """Says that `step` steps are done; `loss` in nats per token."""
        if not self._enabled:
            return
        if self._bar is not None:
            figures = f"loss {loss:.4f}, {_thousands(tokens_per_second)} tokens/s"
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step == self._total or step // self._every > self._last_line // self._every:
            self._last_line = step
            note(
                f"step {step}/{self._total}  loss {loss:.4f}  {_thousands(tokens_per_second)} tokens/s  "
                f"{self._time_left(step)} left"
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _time_left(self, step: int) -> str:
        if step <= self._start:
            return "?"
        seconds = (time.monotonic() - self._began) / (step - self._start) * (self._total - step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _thousands(number: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"
