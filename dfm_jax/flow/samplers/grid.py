"""Time grids of the samplers, float64 on the host. Each holds t and 1 - t."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dfm_jax.flow.time import Time

GRIDS = ("uniform", "cosine", "kappa_uniform")


class TimeGrid(NamedTuple):
    """Times t (N + 1,) float64, and r = 1 - t. Both are computed from integers if the grid allows it.

    Times do not decrease. A time inside (0, 1) may come several times in a row: the grid holds it, for steps that
    correct (`Psi`, `Remask`).
    """

    t: np.ndarray
    r: np.ndarray

    @property
    def steps(self) -> int:
        """N, the number of steps."""
        return len(self.t) - 1

    @property
    def starts(self) -> Time:
        """The `Time` at the start of every step, (N,)."""
        return Time(self.t[:-1], self.r[:-1])

    def nearest(self, times: Sequence[float]) -> np.ndarray:
        """The index of the grid point nearest to each of `times`. Raises ValueError for a time outside the grid."""
        asked = np.asarray(times, np.float64).reshape(-1)
        if not ((asked >= self.t[0] - 1e-9) & (asked <= self.t[-1] + 1e-9)).all():
            raise ValueError(f"intermediate times {asked.tolist()}: expected times in [{self.t[0]:g}, {self.t[-1]:g}]")
        return np.abs(self.t[None, :] - asked[:, None]).argmin(1)


def _checked(t: np.ndarray, r: np.ndarray) -> TimeGrid:
    if t.ndim != 1 or len(t) < 2 or not ((np.diff(t) > 0) | ((np.diff(t) == 0) & (t[1:] > 0) & (t[1:] < 1))).all():
        raise ValueError(
            f"time_grid = {t.tolist()}: expected at least two times that do not decrease, of which only those inside "
            "(0, 1) come again"
        )
    if not (t[0] >= 0 and t[-1] <= 1):
        raise ValueError(f"time_grid from {t[0]:g} to {t[-1]:g}: expected times in [0, 1]")
    return TimeGrid(t, r)


def _check_ends(start: float, end: float) -> None:
    if not 0 <= start < end <= 1:
        raise ValueError(f"time_grid from {start:g} to {end:g}: expected 0 <= start < end <= 1")


def explicit_grid(times: Sequence[float] | np.ndarray) -> TimeGrid:
    """The grid of given times. Raises ValueError unless they lie in [0, 1] in order; see `TimeGrid`."""
    t = np.asarray(times, np.float64)
    return _checked(t, 1.0 - t)


def uniform_grid(steps: int, start: float = 0.0, end: float = 1.0) -> TimeGrid:
    """t_j = start + (end - start) j / N for N = `steps`. On [0, 1] both t and r are computed from integers.

    Raises ValueError unless steps >= 1 and 0 <= start < end <= 1.
    """
    j = np.arange(check_count("steps", steps) + 1)
    _check_ends(start, end)
    t = (start * (steps - j) + end * j) / steps
    r = ((1.0 - start) * (steps - j) + (1.0 - end) * j) / steps
    return _checked(t, r)


def step_size_grid(step_size: float, start: float = 0.0, end: float = 1.0) -> TimeGrid:
    """Steps of `step_size` from `start`. The last one is shortened so that it ends at `end`.

    Raises ValueError unless step_size > 0 and 0 <= start < end <= 1.
    """
    if not step_size > 0:
        raise ValueError(f"step_size = {step_size}: expected step_size > 0")
    _check_ends(start, end)
    # A quotient within rounding of an integer is that integer: no sliver of a step at the end.
    quotient = (end - start) / step_size
    steps = max(1, math.ceil(quotient - 1e-9 * max(1.0, quotient)))
    if abs(quotient - steps) <= 1e-9 * steps:
        return uniform_grid(steps, start, end)
    j = np.arange(steps)
    t = np.append(start + step_size * j, end)
    return _checked(t, np.append((1.0 - start) - step_size * j, 1.0 - end))


def cosine_grid(steps: int) -> TimeGrid:
    """t_j = 1 - cos(pi j / 2N) for N = `steps`: MD4's sampling grid, which starts with small steps."""
    j = np.arange(check_count("steps", steps) + 1)
    t, r = 2.0 * np.sin(np.pi * j / (4.0 * steps)) ** 2, np.sin(np.pi * (steps - j) / (2.0 * steps))
    return _checked(t, r)


def kappa_uniform_grid(steps: int, scheduler: Any) -> TimeGrid:
    """t_j = kappa^{-1}(j / N) for N = `steps`: kappa grows by the same amount in every step."""
    j = np.arange(check_count("steps", steps) + 1)
    t, r = (np.array(v) for v in scheduler.float64_inverse(j / steps, (steps - j) / steps))
    # A schedule whose kappa does not reach 0 or 1 also starts at t = 0 and ends at t = 1.
    t[0], r[0], t[-1], r[-1] = 0.0, 1.0, 1.0, 0.0
    return _checked(t, r)


def adaptive_grid(
    step_size: float,
    scheduler: Any,
    div_free: float | Callable[[float], float] = 0.0,
    start: float = 0.0,
    end: float = 1.0,
) -> TimeGrid:
    """Steps of min(h, 1 / ((1 + c) lambda_t + c mu_t)), so no Euler step has a hazard above 1 (mathematics.md E.2).

    h is `step_size`. c is `div_free`, a number or a function of t, and counts as 0 where kappa = 0. If at most h is
    left, the last step goes to `end`. The rates do not depend on the state, so the grid is known before sampling
    starts. Raises ValueError for step_size <= 0 and c < 0.
    """
    if not step_size > 0:
        raise ValueError(f"step_size = {step_size}: expected step_size > 0")
    times = [float(start)]
    while end - times[-1] > step_size * (1 + 1e-9):
        t = times[-1]
        rates = scheduler.float64(t, 1.0 - t)
        c = float(div_free(t)) if callable(div_free) else float(div_free)
        if c < 0:
            raise ValueError(f"div_free = {c} at t = {t:g}: expected c >= 0")
        hazard = (1.0 + c) * rates.d_kappa / rates.sigma
        if rates.kappa > 0:
            hazard += c * rates.d_kappa / rates.kappa
        else:
            hazard = rates.d_kappa / rates.sigma
        limit = 1.0 / hazard if 0 < hazard < math.inf else step_size
        times.append(t + min(step_size, float(limit)))
    return explicit_grid([*times, end])


def make_grid(
    scheduler: Any,
    step_size: float | None = None,
    steps: int | None = None,
    time_grid: str | TimeGrid | Sequence[float] | None = None,
) -> tuple[TimeGrid, np.ndarray]:
    """The time grid, and the indices of its points where a sampler returns intermediate states by default.

    `step_size` or `steps` alone: a grid from 0 to 1. With times `time_grid` = (t_0, ..., t_1): a grid from t_0 to t_1,
    and the intermediate states are at the grid points nearest to these times. Times `time_grid` alone: they are the
    grid. A name `time_grid` with `steps`: the grid 'uniform', 'cosine' or 'kappa_uniform'.

    Raises ValueError for arguments that contradict each other or are out of range.
    """
    if step_size is not None and steps is not None:
        raise ValueError(f"step_size = {step_size}, steps = {steps}: expected one of them")
    if isinstance(time_grid, str):
        if time_grid not in GRIDS:
            raise ValueError(f"time_grid = {time_grid!r}: expected {', '.join(GRIDS)}, or increasing times")
        if steps is None:
            raise ValueError(f"steps = {steps}: expected an integer of 1 or more with time_grid={time_grid!r}")
        if time_grid == "cosine":
            grid = cosine_grid(steps)
        elif time_grid == "kappa_uniform":
            grid = kappa_uniform_grid(steps, scheduler)
        else:
            grid = uniform_grid(steps)
        return grid, np.arange(grid.steps + 1)
    if time_grid is not None and step_size is None and steps is None:
        grid = time_grid if isinstance(time_grid, TimeGrid) else explicit_grid(time_grid)
        return _checked(grid.t, grid.r), np.arange(grid.steps + 1)
    times = explicit_grid((0.0, 1.0) if time_grid is None else _times(time_grid)).t
    start, end = float(times[0]), float(times[-1])
    if step_size is not None:
        grid = step_size_grid(step_size, start, end)
    elif steps is not None:
        grid = uniform_grid(steps, start, end)
    else:
        raise ValueError("steps = None: expected one of steps, step_size, time_grid")
    return grid, grid.nearest(times.tolist())


def _times(time_grid: TimeGrid | Sequence[float]) -> Sequence[float] | np.ndarray:
    return time_grid.t if isinstance(time_grid, TimeGrid) else time_grid


def check_count(name: str, value: Any) -> int:
    """`value` as an int. Raises ValueError unless it is a whole number from 1 to 2^31 - 1, of any type but bool."""
    whole = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not (whole and 1 <= value < 2**31 and int(value) == value):
        raise ValueError(f"{name} = {value!r}: expected an integer of 1 or more")
    return int(value)
