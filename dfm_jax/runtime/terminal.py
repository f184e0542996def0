"""What a run says on the terminal: lines, and how far it is. Nothing is silent for long."""

import os
import pathlib
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

SILENCE = 45.0  # seconds without a line after which one is said
EVERY = 10.0  # seconds between the lines of work that goes on
_spoken = 0.0  # when the last line was said


def note(line: str) -> None:
    """Writes a line to stderr, above a progress bar if there is one."""
    global _spoken
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()
    _spoken = time.monotonic()


def warn(line: str) -> None:
    """As `note`, marked as a warning."""
    note(f"warning: {line}")


def command(flags: Mapping[str, Any]) -> str:
    """A command of this program that a shell understands, started as this one was: {"workdir": "my run"} ->
    `python main.py --workdir='my run'`."""
    started = sys.argv[0] if sys.argv else ""
    program = shlex.quote(started) if pathlib.Path(started).name == "main.py" else "-m dfm_jax"
    return " ".join(["python", program, *(f"--{name}={shlex.quote(str(value))}" for name, value in flags.items())])


def clock(seconds: float) -> str:
    """75 -> '1:15', 4000 -> '1:06:40'; '?' where it is not finite."""
    if not 0 <= seconds < float("inf"):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Heartbeat:
    """While the context is open, `say(line())` whenever nothing was said for `silence` seconds: no `note`, and `heard`
    of no other heartbeat.

    The lines come from a thread of their own, so that they come while the main thread is in a long computation.
    """

    def __init__(self, line: Callable[[], str], say: Callable[[str], None], silence: float | None = None):
        self._line, self._say = line, say
        self._silence = SILENCE if silence is None else silence
        self._began = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def heard(self) -> None:
        """Something was said just now."""
        global _spoken
        _spoken = time.monotonic()

    def _left(self) -> float:
        return max(self._began, _spoken) + self._silence - time.monotonic()

    def _beat(self) -> None:
        while not self._end.wait(max(0.01, self._left())):
            if self._left() <= 0:
                self.heard()
                self._say(self._line())

    def __enter__(self) -> "Heartbeat":
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._end.set()
        self._thread.join()


class Countdown:
    """Says how much of some work is done, with the time left: at the first two parts, every few seconds, at the end.

    what: "samples". total: parts of it. unit: what a part is, "blocks", or ''. say: prints a line. every: seconds
    between lines. In a part that takes long a line says that it is still at it.
    """

    def __init__(self, what: str, total: int, unit: str, say: Callable[[str], None], *, every: float | None = None):
        self._what, self._total, self._unit, self._say = what, total, f" {unit}" if unit else "", say
        self._every = EVERY if every is None else every
        self._done, self._began, self._first, self._told = 0, time.monotonic(), 0.0, float("-inf")
        self._first_parts = self._parts = 0
        self._heart = Heartbeat(self._still, say)

    def _still(self) -> str:
        return (
            f"{self._what}: {self._done:,} of {self._total:,}{self._unit}, still at the next part "
            f"({clock(time.monotonic() - self._began)} so far)"
        )

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if not self._done:
            self._first, self._first_parts = now, done  # it may have compiled
        self._done = done
        self._parts += 1
        # The second part is the first one whose time is known without compilation.
        if self._parts > 2 and done < self._total and now - self._told < self._every:
            return
        self._told = now
        self._heart.heard()
        end = f"{clock(now - self._began)}" if done >= self._total else f"{self._left(now)} left"
        self._say(f"{self._what}: {done:,} of {self._total:,}{self._unit}, {end}")

    def _left(self, now: float) -> str:
        done = self._done - self._first_parts
        if done > 0:
            return clock((now - self._first) / done * (self._total - self._done))
        # One part alone: what it took, its compilation included, is an upper bound.
        return f"at most {clock((now - self._began) / max(self._done, 1) * (self._total - self._done))}"

    def __enter__(self) -> "Countdown":
        self._began = time.monotonic()
        self._heart.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._heart.__exit__(*exception)


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
            self.paused()
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
