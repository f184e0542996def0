"""Nothing is silent for long: how far a piece of work is, how long it has left, and that it is still at it."""

import threading
import time
from collections.abc import Callable

SILENCE = 45.0  # seconds without a line after which one is said
EVERY = 10.0  # seconds between the lines of work that goes on


def clock(seconds: float) -> str:
    """75 -> '1:15', 4000 -> '1:06:40'; '?' where it is not finite."""
    if not 0 <= seconds < float("inf"):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Heartbeat:
    """While the context is open, `say(line())` whenever `heard` was not called for `silence` seconds.

    The lines come from a thread of their own, so that they come while the main thread is in a long computation.
    """

    def __init__(self, line: Callable[[], str], say: Callable[[str], None], silence: float | None = None):
        self._line, self._say = line, say
        self._silence = SILENCE if silence is None else silence
        self._last = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def heard(self) -> None:
        """Something was said just now."""
        self._last = time.monotonic()

    def _beat(self) -> None:
        while not self._end.wait(max(0.01, self._last + self._silence - time.monotonic())):
            if time.monotonic() - self._last >= self._silence:
                self.heard()
                self._say(self._line())

    def __enter__(self) -> "Heartbeat":
        self.heard()
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
