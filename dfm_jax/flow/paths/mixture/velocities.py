"""Velocities that generate the mixture path, more or less stochastic, for small vocabularies.

Each gives u_t(x, z) = sum_v post(v) u_t(x, z | x_1 = v) with z = x_t, (B, L, S), per unit of t. The rates are >= 0 for
x != z and rows sum to 0 (mathematics.md C). The sampler steps simulate the same processes without these arrays.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.flow.losses.mixture import GeneralizedKL, TimeReversal
from dfm_jax.flow.losses.objective import Objective, times_rate
from dfm_jax.flow.paths.velocity import Velocity
from dfm_jax.flow.sources import Source
from dfm_jax.flow.time import Time

Schedule = float | Callable[[jax.Array], jax.Array]  # a constant, or a function of t


@dataclasses.dataclass(frozen=True)
class ForwardVelocity(Velocity):
    """lambda (delta_{x_1}(x) - delta_z(x)): tokens move one way, from source to data."""

    def rates(self, post: jax.Array, x_t: jax.Array, time: Time, path: Any, source: Source) -> jax.Array:
        return times_rate(path.scheduler.jump_rate(time), post)


@dataclasses.dataclass(frozen=True)
class CorrectorVelocity(Velocity):
    """alpha u^ - beta u_check, u_check = mu (delta_z - p): jumps to x_1 at alpha lambda, renoising at beta mu.

    alpha - beta = 1 generates the path (predictor and corrector). alpha = beta leaves p_t unchanged at a fixed t. Each
    is a number >= 0 or a function of t. mu = d kappa / kappa is infinite at t = 0, so beta must be 0 there.
    Raises ValueError for a negative number.
    """

    alpha: Schedule
    beta: Schedule

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if isinstance(value, (int, float)) and not value >= 0:
                raise ValueError(f"{name} = {value!r}: expected a corrector strength >= 0, or a function of t")

    def rates(self, post: jax.Array, x_t: jax.Array, time: Time, path: Any, source: Source) -> jax.Array:
        out = path.scheduler(time)
        alpha, beta = _value(self.alpha, time.t), _value(self.beta, time.t)
        forward = times_rate(alpha * path.scheduler.jump_rate(time), post)
        noising = jnp.where(beta > 0, beta * out.d_alpha_t / out.alpha_t, 0.0)
        return forward + times_rate(noising, _law(source, post))


def divergence_free(c: Schedule) -> CorrectorVelocity:
    """u^ + c (u^ - u_check), c >= 0: rate (1+c) lambda delta_{x_1}(x) + c mu p(x), the reference's `div_free`.

    c: a number, or a function of t that is 0 at t = 0. Raises ValueError for c < 0.
    """
    if callable(c):
        return CorrectorVelocity(lambda t: 1.0 + c(t), c)
    if not c >= 0:
        raise ValueError(f"c = {c!r}: expected a divergence-free strength >= 0, or a function of t")
    return CorrectorVelocity(1.0 + c, c)


@dataclasses.dataclass(frozen=True)
class DetailedBalanceVelocity(Velocity):
    """Multiflow's detailed-balance noise of strength eta >= 0.

    y jumps to x_1 at lambda + eta C(x_1|x_1)/C(y|x_1), and x_1 jumps to each y with p(y) > 0 at eta. Raises ValueError
    for eta < 0.
    """

    eta: float

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise ValueError(f"eta = {self.eta!r}: expected a detailed-balance strength >= 0")

    def rates(self, post: jax.Array, x_t: jax.Array, time: Time, path: Any, source: Source) -> jax.Array:
        out = path.scheduler(time)
        kappa, sigma = out.alpha_t.astype(post.dtype), out.sigma_t.astype(post.dtype)
        law, p_z, post_z = _law(source, post), _at(source, x_t, post), _pick(post, x_t)
        noised = p_z > 0
        excess = jnp.where(noised, (kappa + sigma * law) / (sigma * jnp.where(noised, p_z, 1.0)), 0.0)
        rate = path.scheduler.jump_rate(time) + self.eta * excess
        return times_rate(rate, post) + self.eta * jnp.where(law > 0, post_z, 0.0)


@dataclasses.dataclass(frozen=True)
class TimeReversalVelocity(Velocity):
    """mu p(z) C(x|x_1) / C(z|x_1): the reversal of the noising chain. For the mask source: the forward velocity.

    At z != x_1 it is lambda delta_{x_1}(x) + mu p(x). At z = x_1 it is mu sigma p(z) p(x) / (kappa + sigma p(z)). It is
    +inf at t = 0 unless the source is the mask.
    """

    def rates(self, post: jax.Array, x_t: jax.Array, time: Time, path: Any, source: Source) -> jax.Array:
        out = path.scheduler(time)
        kappa, sigma = out.alpha_t.astype(post.dtype), out.sigma_t.astype(post.dtype)
        law, p_z, post_z = _law(source, post), _at(source, x_t, post), _pick(post, x_t)
        stay = sigma * p_z / (kappa + sigma * p_z)
        redrawn = jnp.where(p_z > 0, law * (1.0 - post_z + post_z * stay), 0.0)
        forward = times_rate(path.scheduler.jump_rate(time), post)
        return forward + times_rate(out.d_alpha_t / out.alpha_t, redrawn)


def bound_of(velocity: Velocity, path: Any, source: Source, parametrization: str = "posterior") -> Objective:
    """The objective whose mean bounds -log p of the process with this velocity (mathematics.md D.1).

    Raises ValueError for corrector and detailed-balance velocities. Their bound is valid, but loose by up to nats per
    token.
    """
    if isinstance(velocity, ForwardVelocity):
        return GeneralizedKL(path, source, parametrization)
    if isinstance(velocity, TimeReversalVelocity):
        return TimeReversal(path, source, parametrization)
    raise ValueError(f"velocity = {velocity!r}: expected ForwardVelocity or TimeReversalVelocity for a bound")


def _value(schedule: Schedule, t: jax.Array) -> jax.Array:
    return schedule(t) if callable(schedule) else jnp.full_like(t, schedule)


def _law(source: Source, post: jax.Array) -> jax.Array:
    """The source law p over the last axis, with as many axes as `post`."""
    ids = jnp.arange(source.num_states, dtype=jnp.int32)
    return source.probs(ids, post.dtype).reshape((1,) * (post.ndim - 1) + (-1,))


def _at(source: Source, x_t: jax.Array, post: jax.Array) -> jax.Array:
    return source.probs(x_t, post.dtype)[..., None]


def _pick(post: jax.Array, x_t: jax.Array) -> jax.Array:
    return jnp.take_along_axis(post, x_t[..., None], axis=-1)
