"""What a run says on the terminal: lines, and how far it is."""

import os
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from dfm_jax.runtime.waiting import Heartbeat, clock


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

    Off a terminal, where no step ends for long, a line says so.
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
        self._at = start
        self._heart = Heartbeat(self._still, note) if enabled else None

    def reached(self, step: int) -> None:
        """Update `step` is done; the next line may be far."""
        self._at = step

    def paused(self) -> None:
        """Something else has said what it does."""
        if self._heart is not None:
            self._heart.heard()

    def _still(self) -> str:
        if self._at == self._start:
            return f"step {self._at + 1} of {self._total}: compiling and computing it"
        return f"step {self._at} of {self._total} is done; still training"

    def update(self, step: int, *, loss: float, tokens_per_second: float) -> None:
        """Says that `step` steps are done; `loss` in nats per token."""
        self.reached(step)
        if not self._enabled:
            return
        if self._bar is not None:
            figures = f"loss {loss:.4f}, {_thousands(tokens_per_second)} tokens/s"
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step == self._total or step // self._every > self._last_line // self._every:
            self._last_line = step
            self.paused()
            note(
                f"step {step}/{self._total}  loss {loss:.4f}  {_thousands(tokens_per_second)} tokens/s  "
                f"{self._time_left(step)} left"
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        if self._heart is not None:
            self._heart.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        if self._heart is not None:
            self._heart.__exit__(*exception)
        self.close()

    def _time_left(self, step: int) -> str:
        if step <= self._start:
            return "?"
        return clock((time.monotonic() - self._began) / (step - self._start) * (self._total - step))


def _thousands(number: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"
