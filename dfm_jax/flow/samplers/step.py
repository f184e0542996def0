"""What a step of a sampler is: what happens to a token z between two times of the grid, given x_1 ~ posterior.

A step is three pure things:
  plan          the scalars of every step, on the host in float64 (a float32 1 - sigma_s / sigma_t loses digits);
  needs_x_1     which positions need x_1, from uniforms alone, before any model is run;
  transition    the new token from (z, x_1, uniforms, a fresh token y); it looks at x_1 only where `needs_x_1` said so;
and `transition_matrix` states the exact probabilities T(x | z, x_1) that these realise. A position where the mask
source has already revealed a token has the posterior delta_z: the loop passes x_1 = z there and runs no model.

Notation of mathematics.md, E: one step t -> s, kappa and sigma = 1 - kappa at both, lambda = d kappa / sigma, mu = d
kappa / kappa.
"""

import abc
import enum
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.samplers.grid import TimeGrid
from dfm_jax.flow.sources import CategoricalSource, UniformSource
from dfm_jax.flow.time import Time
from dfm_jax.flow.tree import Tree, take_old_names

Row = dict[str, Any]
DivFree = float | Callable[[float], float]


class Plan(NamedTuple):
    """The rows of a trajectory: one model evaluation each, in order.

    time (t, r) (M,) float64: where the model is evaluated, on the sampler's own schedule; scalars: name -> (M,)
    float64; index (M,) int: the grid point reached when the row is done, -1 between grid points; jumps (M,): a
    probability that a position needs x_1, for the size of the groups.
    """

    time: Time
    scalars: dict[str, np.ndarray]
    index: np.ndarray
    jumps: np.ndarray


class Knots(NamedTuple):
    """A schedule on a grid of N steps, float64: values at the N + 1 times, rates at the N starts, step lengths h.

    Where the rate at a start is infinite (t^n with n < 1, at t = 0) it is the mean over the step.
    """

    grid: TimeGrid
    kappa: np.ndarray
    sigma: np.ndarray
    rate: np.ndarray
    backward: np.ndarray
    h: np.ndarray

    @classmethod
    def of(cls, scheduler: Any, grid: TimeGrid) -> "Knots":
        """At t = 1 sigma is 0 even for a schedule that stops short of it: what is left is drawn from the
        posterior."""
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
        """(N,) bool: the step arrives at t = 1."""
        return self.grid.r[1:] == 0

    @property
    def index(self) -> np.ndarray:
        return np.arange(1, self.grid.steps + 1)

    @property
    def jump(self) -> np.ndarray:
        """1 - sigma_s / sigma_t: the integrated hazard, exactly 1 in the step that arrives at t = 1."""
        return 1.0 - self.sigma[1:] / self.sigma[:-1]

    def corrector(self, div_free: DivFree) -> np.ndarray:
        """c_t >= 0 at the N starts. Raises ValueError for a negative one."""
        start = self.grid.t[:-1]
        c = np.array([div_free(float(t)) if callable(div_free) else div_free for t in start], np.float64)
        if not (c >= 0).all():
            raise ValueError(f"div_free={c.min():g}: accepted c >= 0 at every time of the grid")
        return c


class Needs(enum.Flag):
    """What a step asks of the model before it moves the tokens: nothing, or draws of x_1 where `needs_x_1` says so."""

    NOTHING = 0
    DRAWS = enum.auto()


class Step(Tree, abc.ABC):
    """A step. Attributes that are arrays or paths are named in `leaves` (`flow.Tree`).

    needs: what is asked of the model. words: uniforms per position. fresh: 'none', 'source' (y ~ p), 'others' (y != z),
    'data' (a uniform data token) or 'data_others'. Version 0.1 called the methods decide, move and law.
    """

    needs: ClassVar[Needs] = Needs.DRAWS
    words: Any  # int, a field or a property
    fresh: Any  # str

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        take_old_names(cls, {"decide": "needs_x_1", "move": "transition", "law": "transition_matrix"})

    @abc.abstractmethod
    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        """The rows of a trajectory on `grid`. Raises ValueError for a source that the step does not serve."""

    @abc.abstractmethod
    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        """The tokens (B, L) after the step, from z, x_1, y (B, L) and uniforms u (words, B, L) in (0, 1)."""

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        """(B, L) bool: where `transition` looks at x_1; a step that needs nothing does not say."""
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
    """A step by a user's own object with `plan`, `words`, `fresh` and the methods under either name."""

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
    """p (S,) float64 of a source, normalised."""
    if isinstance(source, CategoricalSource):
        return source.law
    p = np.asarray(source.probs(np.arange(source.num_states)), np.float64)
    return p / p.sum()


def is_uniform(source: Any) -> bool:
    return isinstance(source, UniformSource)


def deltas(states: int) -> tuple[np.ndarray, np.ndarray]:
    """1[x = x_1] and 1[x = z] as (S, S, S) arrays indexed [z, x_1, x]."""
    eye, ones = np.eye(states), np.ones((states, 1, 1))
    return eye[None, :, :] * ones, eye[:, None, :] * np.ones((1, states, 1))


class FirstOfTwoClocks(Step):
    """Two clocks start with the step, one for x_1 and one for y; the first to ring before the step ends decides.

    Where x_1 = z the first clock does not exist, and the second may still ring.
    """

    @abc.abstractmethod
    def clocks(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> tuple[jax.Array, jax.Array]:
        """When they ring, in steps: exponential times of the uniforms u."""

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        clock_x_1, clock_y = self.clocks(row, z, u, source)
        return (clock_x_1 < 1) & (clock_x_1 < clock_y)

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        clock_x_1, clock_y = self.clocks(row, z, u, source)
        first = (clock_x_1 < 1) & (clock_x_1 < clock_y)
        return jnp.where(first & (x_1 != z), x_1, jnp.where(clock_y < 1, y, z))
