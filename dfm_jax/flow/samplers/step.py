"""The base class of sampler steps: what happens to a token z between two times of the grid, given x_1 ~ posterior.

A step has three pure functions:
  plan          the scalars of every step, on the host in float64, as 1 - sigma_s / sigma_t loses digits in float32;
  needs_x_1     which positions need x_1, from uniforms alone, before the model runs;
  transition    the new token from z, x_1, uniforms and a fresh token y. It uses x_1 only where `needs_x_1` is True.
`transition_matrix` states the exact probabilities T(x | z, x_1) of these, for tests. On a path that carries tokens over
(`Path.carries_over`) a token that is not the mask is x_1: the loop passes x_1 = z there and does not run the model.

Notation (mathematics.md E): a step goes from t to s, `kappa_t` is kappa at t, sigma = 1 - kappa,
lambda = d kappa / sigma and mu = d kappa / kappa.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.samplers.denoiser import Needs
from dfm_jax.flow.samplers.grid import TimeGrid
from dfm_jax.flow.sources import CategoricalSource, UniformSource
from dfm_jax.flow.time import Time
from dfm_jax.flow.tree import Tree, take_old_names

Row = dict[str, Any]
DivFree = float | Callable[[float], float]


class Plan(NamedTuple):
    """The M rows of a trajectory, in order. Each row is one model evaluation.

    time: (t, r), (M,) float64, the time of the evaluation on the sampler's own schedule. scalars: name -> (M,) float64.
    index: (M,) int, the grid point that the row reaches; -1 between grid points. jumps: (M,), the probability that a
    position needs x_1, from which the size of the groups is chosen.
    """

    time: Time
    scalars: dict[str, np.ndarray]
    index: np.ndarray
    jumps: np.ndarray


class Knots(NamedTuple):
    """A schedule on a grid of N steps, all float64.

    kappa and sigma are at the N + 1 times. rate (lambda) and backward (mu) are at the N starts, and h (N,) are the step
    lengths. A rate that is infinite at a start (t^n with n < 1, at t = 0) is replaced by its mean over the step.
    """

    grid: TimeGrid
    kappa: np.ndarray
    sigma: np.ndarray
    rate: np.ndarray
    backward: np.ndarray
    h: np.ndarray

    @classmethod
    def of(cls, scheduler: Any, grid: TimeGrid) -> "Knots":
        """The knots of `scheduler` on `grid`.

        sigma is set to 0 at t = 1 even if the schedule does not reach it. All tokens are then drawn from the posterior.
        """
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = scheduler.float64(grid.t, grid.r)
            kappa, sigma, d_kappa = (
                np.broadcast_to(np.asarray(v, np.float64), grid.t.shape)
                for v in (value.kappa, value.sigma, value.d_kappa)
            )
            kappa, sigma = np.where(grid.r == 0, 1.0, kappa), np.where(grid.r == 0, 0.0, sigma)
            h = np.diff(grid.t)
            rate, backward = d_kappa[:-1] / sigma[:-1], d_kappa[:-1] / kappa[:-1]
            rate = np.where(np.isfinite(rate), rate, np.log(sigma[:-1] / sigma[1:]) / h)
        return cls(grid, kappa, sigma, rate, np.where(kappa[:-1] > 0, backward, 0.0), h)

    @property
    def last(self) -> np.ndarray:
        """(N,) bool: whether the step arrives at t = 1."""
        return self.grid.r[1:] == 0

    @property
    def index(self) -> np.ndarray:
        """(N,) int: the grid point that each step reaches."""
        return np.arange(1, self.grid.steps + 1)

    @property
    def jump(self) -> np.ndarray:
        """(N,): the probability 1 - sigma_s / sigma_t of a jump; exactly 1 in the step that arrives at t = 1."""
        return 1.0 - self.sigma[1:] / self.sigma[:-1]

    def corrector(self, div_free: DivFree) -> np.ndarray:
        """c_t >= 0 at the starts, (N,). Raises ValueError for a negative value."""
        start = self.grid.t[:-1]
        c = np.array([div_free(float(t)) if callable(div_free) else div_free for t in start], np.float64)
        if not (c >= 0).all():
            raise ValueError(f"div_free = {c.min():g}: expected c >= 0 at every time of the grid")
        return c


class Step(Tree, abc.ABC):
    """A step of a sampler. A subclass names its array and path attributes in `leaves` (`flow.Tree`).

    needs: what the step needs from the model. words: uniforms per position. fresh: the kind of the fresh token y, see
    `fresh.fresh_tokens`. Version 0.1 called the methods decide, move and law.
    """

    needs: ClassVar[Needs] = Needs.DRAWS
    words: Any  # int, a field or a property
    fresh: Any  # str

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        take_old_names(cls, {"decide": "needs_x_1", "move": "transition", "law": "transition_matrix"})

    @abc.abstractmethod
    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        """The rows of a trajectory on `grid`. Raises ValueError for a source that the step does not support."""

    @abc.abstractmethod
    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        """The tokens (B, L) after the step, from z, x_1, y (B, L) and uniforms u (words, B, L) in (0, 1)."""

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        """(B, L) bool: where `transition` uses x_1, for z (B, L), u (words, B, L). Not called if `needs` is NOTHING."""
        raise NotImplementedError

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        """T(x | z, x_1) as (S, S, S) float64 indexed [z, x_1, x]."""
        raise NotImplementedError

    def decide(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        """`needs_x_1`, as version 0.1 called it."""
        return self.needs_x_1(row, z, u, source)

    def move(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        """`transition`, as version 0.1 called it."""
        return self.transition(row, z, x_1, u, y, source)

    def law(self, row: Row, source: Any) -> np.ndarray:
        """`transition_matrix`, as version 0.1 called it."""
        return self.transition_matrix(row, source)


class OtherStep(Step):
    """A step from a user's own object with `plan`, `words`, `fresh` and the methods, under the new or the old names."""

    def __init__(self, kernel: Any) -> None:
        for name, value in {"kernel": kernel, "words": kernel.words, "fresh": kernel.fresh}.items():
            object.__setattr__(self, name, value)

    def _method(self, *names: str) -> Any:
        return next(getattr(self.kernel, name) for name in names if hasattr(self.kernel, name))  # pyright: ignore

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        return self._method("plan")(scheduler, source, grid)

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        return self._method("needs_x_1", "decide")(row, z, u, source)

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        return self._method("transition", "move")(row, z, x_1, u, y, source)


def source_law(source: Any) -> np.ndarray:
    """The law p of a source, (S,) float64, with sum 1."""
    if isinstance(source, CategoricalSource):
        return source.law
    if is_uniform(source):  # asks no device: a program may be compiled for one that is not here
        return np.full(source.num_states, 1 / source.num_states)
    with jax.ensure_compile_time_eval():  # a solver may be made inside a program
        p = np.asarray(source.probs(np.arange(source.num_states)), np.float64)
    return p / p.sum()


def is_uniform(source: Any) -> bool:
    """Whether `source` is a `UniformSource`."""
    return isinstance(source, UniformSource)


def deltas(states: int) -> tuple[np.ndarray, np.ndarray]:
    """1[x = x_1] and 1[x = z], (S, S, S) float64 indexed [z, x_1, x]."""
    eye, ones = np.eye(states), np.ones((states, 1, 1))
    return eye[None, :, :] * ones, eye[:, None, :] * np.ones((1, states, 1))


class FirstOfTwoClocks(Step):
    """A step with two clocks, one for x_1 and one for y. The first to ring before the step ends decides.

    Where x_1 = z there is no first clock, and the second may still ring.
    """

    @abc.abstractmethod
    def clocks(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> tuple[jax.Array, jax.Array]:
        """When the clocks for x_1 and y ring, (B, L) each in units of the step, from uniforms u (words, B, L)."""

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        clock_x_1, clock_y = self.clocks(row, z, u, source)
        return (clock_x_1 < 1) & (clock_x_1 < clock_y)

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        clock_x_1, clock_y = self.clocks(row, z, u, source)
        first = (clock_x_1 < 1) & (clock_x_1 < clock_y)
        return jnp.where(first & (x_1 != z), x_1, jnp.where(clock_y < 1, y, z))
