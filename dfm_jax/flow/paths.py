"""Probability paths between source and data: the conditional mixture path (mathematics.md C.1)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.flow.noise import bernoulli
from dfm_jax.flow.scheduler_base import Scheduler
from dfm_jax.flow.time import TimeLike, as_time, expand, floating


class PathSample(NamedTuple):
    """x_0, x_1, x_t int32 of one shape, and t as the caller gave it."""

    x_0: jax.Array
    x_1: jax.Array
    x_t: jax.Array
    t: TimeLike


@dataclasses.dataclass(frozen=True)
class MixtureDiscreteProbPath:
    """C_t(x | x_0, x_1) = kappa_t delta_{x_1}(x) + sigma_t delta_{x_0}(x), independently at each position."""

    scheduler: Scheduler

    def __post_init__(self) -> None:
        if not isinstance(self.scheduler, Scheduler):
            raise ValueError(f"scheduler={self.scheduler!r}: accepted a convex Scheduler (alpha_t + sigma_t = 1)")

    def sample(self, key: jax.Array, x_0: jax.Array, x_1: jax.Array, t: TimeLike) -> PathSample:
        """x_t of the path: each token is x_1 with probability kappa_t, else x_0.

        x_0, x_1 (B, L) int; t (B,) or any leading axes of the tokens; `key` one key, or (B,) keys, one per row.
        At t = 0 x_t = x_0 and at t = 1 x_t = x_1, surely. Raises ValueError for shapes that differ and tokens that
        are no integers.
        """
        x_0, x_1 = as_pair(x_0, x_1)
        kappa, sigma, *_ = self.scheduler(expand(as_time(t), x_1.shape))
        keep = bernoulli(key, kappa, sigma, x_1.shape)
        return PathSample(x_0, x_1, jnp.where(keep, x_1, x_0), t)

    def posterior_to_velocity(self, logits: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        """u_t(x, z) = lambda_t (post(x) - delta_z(x)), z = x_t, of shape (B, L, S), per unit of t; rows sum to 0.

        `logits` (B, L, S) of the posterior. +-inf at t = 1 where the posterior is not yet x_t itself.
        """
        check_tokens(logits, x_t)
        rate = expand(as_time(t), logits.shape)
        post = jax.nn.softmax(floating(logits), axis=-1)
        return times_rate(self.scheduler.jump_rate(rate), post - one_hot_like(x_t, post))


def times_rate(rate: jax.Array, change: jax.Array) -> jax.Array:
    """rate * change; 0 where change = 0 even at an infinite rate, through which no gradient passes (never NaN)."""
    rate, change = jnp.broadcast_arrays(rate.astype(change.dtype), change)
    endless = jnp.isinf(rate)
    limit = jnp.where(change == 0, 0.0, jnp.copysign(jnp.inf, change))
    return jnp.where(endless, jax.lax.stop_gradient(limit), jnp.where(endless, 0.0, rate) * change)


def one_hot_like(ids: jax.Array, probs: jax.Array) -> jax.Array:
    """delta_ids over the last axis of `probs`, in its dtype."""
    return jax.nn.one_hot(ids, probs.shape[-1], dtype=probs.dtype)


def check_tokens(logits: jax.Array, tokens: jax.Array, num_states: int | None = None) -> None:
    """Raises ValueError unless logits are (..., S) for integer tokens (...), S = num_states where given."""
    check_integers("tokens", tokens)
    states: Any = logits.shape[-1] if num_states is None else num_states
    if logits.shape != (*tokens.shape, states):
        raise ValueError(f"logits of shape {logits.shape}: accepted {(*tokens.shape, states)}")


def as_pair(other: jax.Array, x_1: jax.Array, name: str = "x_0") -> tuple[jax.Array, jax.Array]:
    """`other` and x_1 as jax arrays of x_1's type. Raises ValueError, with `name`, unless integers of one shape."""
    check_integers(name, other)
    check_integers("x_1", x_1)
    if other.shape != x_1.shape:
        raise ValueError(f"{name} of shape {other.shape}: accepted that of x_1, {x_1.shape}")
    x_1 = jnp.asarray(x_1)
    return jnp.asarray(other).astype(x_1.dtype), x_1


def check_integers(name: str, tokens: jax.Array) -> None:
    """Raises ValueError unless `tokens` are integers."""
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"{name} of {tokens.dtype}: accepted integers")


def at_tokens(tokens: jax.Array, num_states: int) -> jax.Array:
    """1[v = token] over S = num_states states, (..., S) bool for tokens (...) of any integer type."""
    states = jnp.arange(num_states, dtype=jnp.int32).reshape((1,) * tokens.ndim + (-1,))
    return states == jnp.asarray(tokens, jnp.int32)[..., None]
