"""Step kernels of the mixture path: what happens to a token z between two times of the grid, given x_1 ~
posterior.

A kernel is three pure things:
  plan     the scalars of every step, computed on the host in float64 (a float32 1 - sigma_s / sigma_t loses digits);
  decide   which positions need x_1, from uniforms alone, before any model is run;
  move     the new token from (z, x_1, uniforms, a fresh token y); where `decide` said no, it does not look at x_1;
and `law` states the exact probabilities T(x | z, x_1) that `decide` and `move` realise. A position where the mask
source has already revealed a token has the posterior delta_z: the solver passes x_1 = z there and runs no model.

Notation of mathematics.md, E: one step t -> s, kappa and sigma = 1 - kappa at both, lambda = d kappa / sigma, mu = d
kappa / kappa. This file has the kernels that jump to x_1 and then renoise, independently of everything: a jump
with probability `jump`, then a fresh y ~ p with probability `renoise`. `steps_stochastic.py` has the others.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.grids import TimeGrid
from dfm_jax.flow.sources import CategoricalSource, UniformSource
from dfm_jax.flow.time import Time

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


class Step(Protocol):
    """A step kernel. words: uniforms per position; fresh: 'none', 'source' (y ~ p) or 'others' (y != z)."""

    @property
    def words(self) -> int: ...
    @property
    def fresh(self) -> str: ...
    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan: ...
    def decide(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array: ...
    def move(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array: ...
    def law(self, row: Row, source: Any) -> np.ndarray: ...


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


class FirstOfTwoClocks(abc.ABC):
    """Two clocks start with the step, one for x_1 and one for y; the first to ring before the step ends decides.

    Where x_1 = z the first clock does not exist, and the second may still ring.
    """

    @abc.abstractmethod
    def clocks(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> tuple[jax.Array, jax.Array]:
        """When they ring, in steps: exponential times of the uniforms u."""

    def decide(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        clock_x_1, clock_y = self.clocks(row, z, u, source)
        return (clock_x_1 < 1) & (clock_x_1 < clock_y)

    def move(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        clock_x_1, clock_y = self.clocks(row, z, u, source)
        first = (clock_x_1 < 1) & (clock_x_1 < clock_y)
        return jnp.where(first & (x_1 != z), x_1, jnp.where(clock_y < 1, y, z))


@dataclasses.dataclass(frozen=True)
class _JumpThenRenoise:
    """T(x | z, x_1) = (1 - b) [a delta_{x_1} + (1 - a) delta_z] + b p, with a = `jump`, b = `renoise`."""

    @property
    def renoises(self) -> bool:
        return False

    @property
    def words(self) -> int:
        return 2 if self.renoises else 1

    @property
    def fresh(self) -> str:
        return "source" if self.renoises else "none"

    def decide(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        jumps = u[0] < row["jump"]
        return jumps & ~(u[1] < row["renoise"]) if self.renoises else jumps

    def move(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        moved = jnp.where(u[0] < row["jump"], x_1, z)
        return jnp.where(u[1] < row["renoise"], y, moved) if self.renoises else moved

    def law(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        a, b = row["jump"], row["renoise"] if self.renoises else 0.0
        return (1 - b) * (a * to_x_1 + (1 - a) * stay) + b * source_law(source)


@dataclasses.dataclass(frozen=True)
class Exact(_JumpThenRenoise):
    """Exact-kappa: x = x_1 with probability 1 - sigma_s / sigma_t, else z. The default.

    For a frozen x_1 the marginal is C_s exactly; for the mask source this is MD4's ancestral sampler. The step
    that arrives at t = 1 jumps everywhere by itself; a grid that stops earlier leaves the state where it is.
    """

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        return Plan(grid.starts, {"jump": knots.jump}, knots.index, knots.jump)


@dataclasses.dataclass(frozen=True)
class Euler(_JumpThenRenoise):
    """The reference's Euler step: x = x_1 with probability 1 - exp(-h lambda_t), and surely in the step arriving
    at t = 1.

    Of order 1 for the mask source, only O(h log 1/h) for others (mathematics.md, E.1): near t = 1 too few tokens jump.
    """

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        jump = np.where(knots.last, 1.0, -np.expm1(-knots.h * knots.rate))
        return Plan(grid.starts, {"jump": jump}, knots.index, jump)


@dataclasses.dataclass(frozen=True)
class TwoStage(_JumpThenRenoise):
    """Jump past kappa_s to k_u, then renoise back: the exact form of the divergence-free corrector c = `div_free`.

    k_u = min(1, kappa_s (kappa_s / kappa_t)^c), 1 where kappa_t = 0 < c; a = (k_u - kappa_t) / (1 - kappa_t),
    b = 1 - kappa_s / k_u. First order in h: rates A = (1 + c) lambda to x_1 and B = c mu to y ~ p. The conditional
    marginal is exact, also from t = 0 and into t = 1. c: a number or a function of t, >= 0; 0 is `Exact`.
    """

    div_free: DivFree = 0.0

    @property
    def renoises(self) -> bool:
        return True

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        kappa_t, kappa_s, sigma_t = knots.kappa[:-1], knots.kappa[1:], knots.sigma[:-1]
        c = knots.corrector(self.div_free)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            beyond = kappa_s * np.where(kappa_t > 0, kappa_s / kappa_t, np.inf) ** c
        k_u = np.where(c > 0, np.minimum(1.0, beyond), kappa_s)
        jump = np.where(c > 0, (k_u - kappa_t) / sigma_t, knots.jump)
        renoise = np.where(c > 0, 1.0 - kappa_s / k_u, 0.0)
        scalars = {"jump": np.clip(jump, 0.0, 1.0), "renoise": renoise}
        return Plan(grid.starts, scalars, knots.index, scalars["jump"] * (1.0 - renoise))


@dataclasses.dataclass(frozen=True)
class Corrector(_JumpThenRenoise):
    """Exact-kappa t -> s, then `iterations` times: renoise from s back to v and step v -> s again, unless s = 1.

    kappa_v = kappa_s - strength (kappa_s - kappa_t), 0 < strength <= 1: the noising kernel (keep with probability
    kappa_v / kappa_s, else y ~ p) carries C_s to C_v and the exact step carries it back, so a correction preserves the
    law at s. It goes back by a share of the step, because v -> s has itself an error of second order in its length.
    One more model evaluation per iteration and step.
    """

    iterations: int = 1
    strength: float = 0.5

    def __post_init__(self):
        if self.iterations < 0:
            raise ValueError(f"iterations={self.iterations}: accepted an integer >= 0")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength}: accepted 0 < strength <= 1")

    @property
    def renoises(self) -> bool:
        return True

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        kappa_t, kappa_s, sigma_s = knots.kappa[:-1], knots.kappa[1:], knots.sigma[1:]
        at_v = scheduler.float64_inverse(kappa_s - self.strength * (kappa_s - kappa_t))
        kappa_v, sigma_v, *_ = scheduler.float64(at_v)
        nothing = np.zeros(grid.steps)
        # Not at t = 1: there a correction would put the last step off to a worse start.
        back = np.where(knots.last, 0.0, 1.0 - kappa_v / kappa_s)
        again = np.where(knots.last, 0.0, 1.0 - sigma_s / sigma_v)
        blocks = [(*grid.starts, knots.jump, nothing)]
        blocks += [(*at_v, nothing, back), (*at_v, again, nothing)] * self.iterations
        t, r, jump, renoise = (np.stack(column, 1).reshape(-1) for column in zip(*blocks, strict=True))
        index = np.full((grid.steps, len(blocks)), -1)
        index[:, -1] = knots.index
        return Plan(Time(t, r), {"jump": jump, "renoise": renoise}, index.reshape(-1), jump)
