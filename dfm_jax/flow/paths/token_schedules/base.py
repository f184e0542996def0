"""The base class of paths on which every token has its own schedule: kinetic-optimal and GenMD4 (mathematics.md C.3).

    C_t(x | x_1) = kappa_t(x_1) delta_{x_1}(x) + sigma_t(x_1) p(x)

A token jumps to x_1 at the rate lambda_t(x_1). Every schedule is a function of the path's clock. Below, kappa and sigma
without a token belong to the clock, and rates are per unit of the clock's kappa.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.losses.objective import times_rate
from dfm_jax.flow.paths.base import Path, PathSample, clock, find_step
from dfm_jax.flow.paths.token_schedules.steps import STEPS
from dfm_jax.flow.paths.velocity import Velocity
from dfm_jax.flow.random import bernoulli
from dfm_jax.flow.samplers.step import Knots, Row
from dfm_jax.flow.sources import Source
from dfm_jax.flow.time import Time, TimeLike
from dfm_jax.flow.tokens import as_pair


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSchedulePath(Path, abc.ABC):
    """x_t is x_1 with probability kappa_t(x_1), else x_0."""

    @abc.abstractmethod
    def schedule(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        """kappa(v) and sigma(v) of tokens `ids`, at the clock's kappa and sigma; arguments broadcast.

        Each must keep its digits near 0.
        """

    @abc.abstractmethod
    def rate(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> jax.Array:
        """lambda(v) of tokens `ids`, per unit of the clock's kappa; +inf at sigma = 0. Arguments broadcast."""

    @abc.abstractmethod
    def step_scalars(self, knots: Knots) -> dict[str, np.ndarray]:
        """The scalars of each step that `jump` uses: name -> (N,) float64."""

    @abc.abstractmethod
    def jump(self, ids: jax.Array, row: Row) -> jax.Array:
        """The probability 1 - sigma_s(v) / sigma_t(v) that tokens `ids` jump in a step; 1 in the step to t = 1."""

    @abc.abstractmethod
    def most(self, row: Row) -> jax.Array:
        """The largest value of `jump` over the vocabulary, or a little more."""

    def sample(self, key: jax.Array, x_0: jax.Array, x_1: jax.Array, t: TimeLike) -> PathSample:
        """Draws x_t: x_1 with probability kappa_t(x_1), else x_0. Shapes as in `Path.sample`."""
        x_0, x_1 = as_pair(x_0, x_1)
        kappa, sigma, _ = clock(self, t, x_1.shape)
        keep = bernoulli(key, *self.schedule(x_1, kappa, sigma), x_1.shape)
        return PathSample(x_0, x_1, jnp.where(keep, x_1, x_0), t)

    def own_velocity(self) -> Velocity:
        return TokenForwardVelocity()

    def get_step(self, name: str) -> Any:
        return find_step(self, STEPS, name)


@dataclasses.dataclass(frozen=True)
class TokenForwardVelocity(Velocity):
    """lambda(x_1) (delta_{x_1}(x) - delta_z(x)): the one-way velocity of a `TokenSchedulePath`."""

    def rates(self, post: jax.Array, x_t: jax.Array, time: Time, path: Any, source: Source) -> jax.Array:
        out = path.scheduler(time)
        ids = jnp.arange(source.num_states, dtype=jnp.int32).reshape((1,) * (post.ndim - 1) + (-1,))
        rates = path.rate(ids, out.alpha_t.astype(post.dtype), out.sigma_t.astype(post.dtype))
        rates = jnp.where(out.sigma_t <= 0, jnp.inf, out.d_alpha_t.astype(post.dtype) * rates)
        return times_rate(rates, post)
