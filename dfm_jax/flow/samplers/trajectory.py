"""The moves of a sampler on a grid, and the scalars of each: what the compiled loop runs over."""

from typing import Any, NamedTuple

import numpy as np

from dfm_jax.flow.prediction import PathLike
from dfm_jax.flow.samplers.correctors.corrected import Corrected
from dfm_jax.flow.samplers.correctors.gibbs import rounds_of
from dfm_jax.flow.samplers.correctors.redraw import RedrawMoves
from dfm_jax.flow.samplers.correctors.settings import Correction, ForwardBackward, PosteriorCorrection, carries
from dfm_jax.flow.samplers.events import EventMoves, Events
from dfm_jax.flow.samplers.grid import TimeGrid
from dfm_jax.flow.samplers.moves import Moves, StepMoves
from dfm_jax.flow.samplers.step import Knots, Step
from dfm_jax.flow.samplers.unmasking.unmask import Unmask, UnmaskMoves
from dfm_jax.flow.time import Time
from dfm_jax.flow.tree import Kept


class Trajectory(NamedTuple):
    """M moves in order.

    moves: what each asks and does. rows: name -> (M, ...), the scalars of each move, float32; `time` is what the
    network is told, on the schedule of its training. A chain has none, and as many moves as it takes. index: (M,) int,
    the grid point that the move reaches, -1 between grid points. expected: (M,), about how many rows of the head a
    sequence needs. at: (N + 1,) float32, what frames at the grid points go by where moves end early: see them.
    """

    moves: Moves
    rows: dict[str, np.ndarray]
    index: np.ndarray
    expected: np.ndarray
    at: np.ndarray


class Setting(NamedTuple):
    """What a trajectory is made for: a path, a source, the sampler's own schedule, a grid, and tokens per sequence."""

    path: PathLike
    source: Any
    scheduler: Any
    grid: TimeGrid
    length: int

    @property
    def times(self) -> np.ndarray:
        """The grid's, float32."""
        return self.grid.t.astype(np.float32)

    def network_time(self, time: Time) -> np.ndarray:
        """The time on the schedule of the training at which kappa is that of the sampler's schedule at `time`."""
        if self.scheduler is self.path.scheduler:
            return np.asarray(time.t)
        value = self.scheduler.float64(time.t, time.r)
        return np.asarray(self.path.scheduler.float64_inverse(value.kappa, value.sigma).t)


def of_step(step: Step, setting: Setting) -> Trajectory:
    """The moves of a step: one for each row of its plan."""
    own, source = setting.scheduler, setting.source
    plan = step.plan(own, source, setting.grid)
    waiting = 1.0 if source.mask_id is None else own.float64(plan.time).sigma
    rows = {name: np.asarray(value, np.float32) for name, value in plan.scalars.items()}
    rows["time"] = np.asarray(setting.network_time(plan.time), np.float32)
    moves = StepMoves(step, Kept.wrap(source), source.mask_id if setting.path.carries_over else None)
    return Trajectory(moves, rows, np.asarray(plan.index), setting.length * plan.jumps * waiting, setting.times)


def of_events(events: Events, setting: Setting) -> Trajectory:
    """The moves of a chain without steps: one for each jump."""
    sigma = Knots.of(setting.scheduler, setting.grid).sigma.astype(np.float32)
    moves = EventMoves(events.delta, setting.source.mask_id, setting.path.scheduler, sigma[[0, -1]])
    # Jumps come one at a time. All tokens that are left at `delta` may jump in one move.
    expected = np.append(np.ones(setting.length), setting.length * events.delta)
    return Trajectory(moves, {}, np.zeros(0, np.int64), expected, sigma)


def of_unmask(unmask: Unmask, setting: Setting) -> Trajectory:
    """The moves of `unmask`: one for each step of the grid, or as many as a sequence can need.

    Raises ValueError for a grid that ends before 1 where the grid has no meaning.
    """
    length, grid = setting.length, setting.grid
    moves = UnmaskMoves(unmask, setting.source.mask_id, setting.path.scheduler)
    if not unmask.by_schedule:
        if grid.r[-1] != 0:
            raise ValueError(f"time_grid to {grid.t[-1]:g}: expected 1 with count or bound, which do not go by time")
        each = unmask.count or 1
        evaluations = -(-length // each)
        left = np.maximum(length - each * np.arange(evaluations), 0)
        expected = left if unmask.looks_first else np.minimum(left, each)
        rows = {"time": np.zeros(evaluations, np.float32)}
        return Trajectory(moves, rows, np.full(evaluations, -1), expected, setting.times)
    sigma = Knots.of(setting.scheduler, grid).sigma
    # For every number of free positions, from float64: floor(F sigma + 1/2) jumps at fractions that float32 misses.
    stay = np.floor(np.arange(length + 1) * sigma[1:, None] + 0.5).astype(np.int32)
    revealed = length * (sigma[:-1] - sigma[1:])
    rows = {"time": np.asarray(setting.network_time(grid.starts), np.float32), "stay": stay}
    expected = length * sigma[:-1] if unmask.looks_first else revealed
    return Trajectory(moves, rows, np.arange(1, grid.steps + 1), expected, setting.times)


def corrected(trajectory: Trajectory, correction: Correction, setting: Setting) -> Trajectory:
    """The same moves with the rounds of a corrector after those that reach a grid point (or after every evaluation)."""
    moves, index, source = trajectory.moves, trajectory.index, setting.source
    knots = Knots.of(setting.scheduler, setting.grid)
    reached = np.maximum(index, 0)
    if isinstance(moves, UnmaskMoves):
        assert isinstance(correction, PosteriorCorrection)
        # Which rounds are due depends on the state.
        acts = np.full(len(index), True)
        rounds: Moves = RedrawMoves(correction, moves)
    else:
        last = np.append(False, knots.last)
        acts = (index > 0) & correction.acts(knots.kappa, last)[reached]
        rounds = rounds_of(correction, setting.path, source)
    extra = {"kappa": knots.kappa[reached], "sigma": knots.sigma[reached]}
    at = Time(setting.grid.t[reached], setting.grid.r[reached])
    if isinstance(correction, ForwardBackward):
        before = knots.kappa[np.maximum(reached - 1, 0)]
        at, extra = _back(correction, setting, extra["kappa"], extra["sigma"], before)
    extra["time"] = setting.network_time(at)
    copies = 1 + correction.rounds * acts
    row = np.repeat(np.arange(len(index)), copies)
    corrects = np.append(False, np.diff(row) == 0)
    ends = np.append(np.diff(row) != 0, True)
    rows = {name: value[row] for name, value in trajectory.rows.items()}
    rows["time"] = np.where(corrects, extra.pop("time")[row], rows["time"]).astype(np.float32)
    # A scalar of the step may have the same name; the rows of rounds are the corrector's own.
    for name, value in extra.items():
        rows[name] = np.where(corrects, value[row], rows.get(name, np.zeros(len(row)))).astype(np.float32)
    rows["corrects"] = corrects
    expected = np.where(corrects, _sites(correction, setting.length), trajectory.expected[row])
    hidden = source.mask_id if carries(setting.path, source) else None
    index = np.where(ends, index[row], -1)
    return Trajectory(Corrected(moves, rounds, correction, hidden), rows, index, expected, trajectory.at)


def _back(
    correction: ForwardBackward, setting: Setting, kappa: np.ndarray, sigma: np.ndarray, before: np.ndarray
) -> tuple[Time, dict[str, np.ndarray]]:
    """The times v to which rounds at s go back, and the probabilities of noise and of the exact step."""
    at = setting.scheduler.float64_inverse(kappa - correction.strength * (kappa - before))
    value = setting.scheduler.float64(at.t, at.r)
    with np.errstate(divide="ignore", invalid="ignore"):
        back, again = 1.0 - value.kappa / kappa, 1.0 - sigma / value.sigma
    return at, {"back": np.nan_to_num(back), "again": np.nan_to_num(again)}


def _sites(correction: Correction, length: int) -> float:
    """About how many positions a round draws."""
    if not isinstance(correction, PosteriorCorrection):
        return 0.1 * length
    if correction.rate is not None:
        return length * correction.rate
    return min(correction.sites or correction.informed or 1, length)
