"""What a run learns about itself on the way: how long a step takes, and whether its evaluation loss still falls."""

import math
import time
from collections.abc import Sequence


class Pace:
    """Seconds a step, once some steps have been done since the first one of this call, which compiles."""

    STEPS, SECONDS = 5, 3.0

    def __init__(self, first: int):
        self._first: int | None = first + 1
        self._began = 0.0

    def paused(self, seconds: float) -> None:
        """Something else than steps took so long."""
        self._began += seconds

    def __call__(self, step: int, line: bool) -> float | None:
        """When the metrics of `step` have been read. line: whether it has a line of its own."""
        if self._first is None or step < self._first:
            return None
        now = time.monotonic()
        if step == self._first:
            self._began = now
            return None
        done, seconds = step - self._first, now - self._began
        if done < self.STEPS or not (line or seconds >= self.SECONDS):
            return None
        self._first = None
        return seconds / done


class Falling:
    """Whether an evaluation loss still falls. earlier: (step, loss) of the run's evaluations so far.

    step: of the lowest loss, 0 without one. since: evaluations after it.
    """

    PATIENCE = 3  # evaluations

    def __init__(self, earlier: Sequence[tuple[int, float]] = ()):
        finite = [(loss, step) for step, loss in earlier if math.isfinite(loss)]
        self._loss, self.step = min(finite, default=(math.inf, 0))
        self.since = sum(step > self.step for _, step in finite)

    def __call__(self, step: int, loss: float, error: float) -> tuple[bool, str]:
        """Whether this loss is the lowest so far, and what there is to say. error: one standard error of the loss."""
        if loss < self._loss:
            self._loss, self.step, self.since = loss, step, 0
            return True, ""
        self.since += 1
        if self.since % self.PATIENCE:
            return False, ""
        rose = " and has risen by more than its error" if loss - self._loss > 2 * error else ""
        return False, (
            f"the loss of the validation text has not fallen for {self.since} evaluations{rose}: {loss:.4f} now, "
            f"{self._loss:.4f} at step {self.step}; what to do: docs/own_text.md"
        )
