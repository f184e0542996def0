"""How far a preparation is, and lines that say so."""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import TextIO

from dfm_jax.data.rows import Unit


@dataclasses.dataclass(frozen=True)
class Progress:
    """Of one call of `prepare`: documents and tokens made, seconds since its start.

    fraction: of its work, 0 to 1, that is done; begun: that which an interrupted run had done before it.
    """

    documents: int
    tokens: int
    seconds: float
    fraction: float
    unit: str
    begun: float = 0.0
    finished: bool = False

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        """At the rate so far; infinite as long as that is unknown."""
        done = self.fraction - self.begun
        return self.seconds * (1 - self.fraction) / done if done > 0 else float("inf")

    def __str__(self) -> str:
        left = "?" if self.seconds_left == float("inf") else _clock(self.seconds_left)
        time_left = "" if self.finished else f", {left} left"
        return (
            f"{self.fraction:6.1%}  {self.documents:,} documents  {self.tokens:,} tokens  "
            f"{self.tokens_per_second:,.0f} tokens/s  {_clock(self.seconds)}{time_left}"
        )


class Printer:
    """A callback for `prepare`: one line that renews itself on a terminal, else a line every `interval` seconds."""

    def __init__(self, file: TextIO | None = None, interval: float = 10.0):
        self._file = file or sys.stderr
        self._terminal = self._file.isatty()
        self._interval = 0.0 if self._terminal else interval
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.finished or progress.seconds - self._last >= self._interval:
            self._last = progress.seconds
            line = f"prepare {progress}"
            if self._terminal:
                line = f"\r{line:<110}"  # covers what a longer line before it has left
            print(line, end="" if self._terminal and not progress.finished else "\n", file=self._file, flush=True)


class Meter:
    """Adds up the units' progress and tells the callback, at most twice a second."""

    def __init__(self, total: int, callback: Callable[[Progress], None] | None):
        self._total, self._callback = max(total, 1), callback
        self._start = self._told = time.monotonic()
        self._sizes, self._documents, self._tokens = 0, 0, 0
        self._begun, self._name = 0.0, ""

    def skip(self, unit: Unit) -> None:
        """A unit that an earlier run has finished: no work of this one."""
        self._total = max(self._total - unit.size, 1)

    def resume(self, unit: Unit) -> None:
        """What `unit` has read so far was done by an earlier run."""
        self._begun = self._fraction(unit)

    def _fraction(self, unit: Unit) -> float:
        return min(1.0, (self._sizes + unit.size * unit.fraction()) / self._total)

    def add(self, unit: Unit, documents: int, tokens: int) -> None:
        self._documents += documents
        self._tokens += tokens
        self._name = unit.name
        if self._callback and time.monotonic() - self._told >= 0.5:
            self._told = time.monotonic()
            self._tell(self._fraction(unit))

    def finish(self, unit: Unit) -> None:
        self._sizes += unit.size

    def close(self) -> None:
        if self._callback:
            self._tell(1.0, finished=True)

    def _tell(self, fraction: float, finished: bool = False) -> None:
        assert self._callback is not None
        seconds = time.monotonic() - self._start
        self._callback(Progress(self._documents, self._tokens, seconds, fraction, self._name, self._begun, finished))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
