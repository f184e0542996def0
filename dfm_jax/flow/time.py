"""Time on the path, and the laws that training draws times from (mathematics.md D.5).

Near t = 1 the formulas depend on r = 1 - t, and float32 cannot recover r from t. A time is therefore the pair (t, r).
Every function of `flow` with an argument `t` takes an array or a `Time`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dfm_jax.flow.random import uniform_pair

LAWS = ("uniform", "squared")
METHODS = ("iid", "stratified", "antithetic", "systematic")


class Time(NamedTuple):
    """A time t in [0, 1] (0 is the source, 1 the data) and r = 1 - t, of one shape. r keeps its digits near 0."""

    t: Any
    r: Any


TimeLike = Any  # an array of times in [0, 1], a number, or a Time


def as_time(t: TimeLike) -> Time:
    """`t` as a `Time` of jax arrays, float32 or float64. r is 1 - t unless `t` is a `Time` already.

    Raises ValueError when a time lies outside [0, 1]. Traced times are not checked, as their values are not known.
    """
    if isinstance(t, Time):
        check_unit_interval("t", t.t)
        check_unit_interval("r", t.r)
        return Time(floating(t.t), floating(t.r))
    check_unit_interval("t", t)
    time = floating(t)
    return Time(time, 1.0 - time)


def expand(time: Time, shape: tuple[int, ...]) -> Time:
    """Appends axes to `time`, so that (B,) times broadcast against arrays of `shape` (B, L, ...).

    Raises ValueError unless its axes are the leading ones of `shape`, or of size 1.
    """

    def reshape(x: jax.Array) -> jax.Array:
        if x.ndim > len(shape) or any(size not in (1, shape[axis]) for axis, size in enumerate(x.shape)):
            raise ValueError(f"t of shape {x.shape}: expected leading axes of {shape}")
        return x.reshape(x.shape + (1,) * (len(shape) - x.ndim))

    return Time(reshape(time.t), reshape(time.r))


def host_time(t: TimeLike, r: Any = None) -> Time:
    """`t` as a `Time` of numpy float64, for scalars computed on the host; r is 1 - t unless given.

    Raises ValueError when t or r lies outside [0, 1].
    """
    if isinstance(t, Time):
        t, r = t.t, t.r
    start = np.asarray(t, dtype=np.float64)
    check_unit_interval("t", start)
    left = 1.0 - start if r is None else np.asarray(r, dtype=np.float64)
    check_unit_interval("r", left)
    return Time(start, left)


def floating(x: Any) -> jax.Array:
    """`x` as a jax array of at least float32 (float64 only where x64 is enabled and `x` has it)."""
    if isinstance(x, (bool, int, float)):
        return jnp.asarray(x, dtype=jnp.result_type(float))
    x = jnp.asarray(x)
    wide = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize >= 4
    return x if wide else x.astype(jnp.float32)


def check_unit_interval(name: str, x: Any) -> None:
    """Raises ValueError unless every value of `x` is in [0, 1]. Traced values are not checked."""
    if isinstance(x, Tracer):
        return
    values = np.asarray(x)
    good = (values >= 0) & (values <= 1)
    if not good.all():
        raise ValueError(f"{name} = {values[~good].ravel()[0]}: expected values in [0, 1]")


def sample_times(
    key: jax.Array,
    batch: int,
    *,
    law: str = "uniform",
    method: str = "iid",
    epsilon: float = 0.0,
    scheduler: Any = None,
) -> tuple[Time, jax.Array]:
    """Draws the times of a global batch and the weights of their losses: (Time of (batch,), weight (batch,)), float32.

    E[weight * loss(t)] is the mean of the loss over t ~ U[0, 1 - epsilon], for every law and method.

    law 'uniform': t ~ U[0, 1 - epsilon] with weight 1, as published.
    law 'squared': sigma_t = (1-u)^2 for uniform u, with weight 2(1-u) / d kappa. A loss that grows as lambda ~ 1/r then
    has a finite variance. Without `scheduler`: r = (1-u)^2 with weight 2(1-u).

    method 'iid': independent times. 'stratified': u_i = (U_i + pi(i)) / batch, with pi a random permutation.
    'antithetic': the second half of the batch uses 1 - u of the first. 'systematic': stratified, with one U for all.

    Raises ValueError for an unknown law or method, and for epsilon outside [0, 1).
    """
    for name, value, accepted in (("law", law, LAWS), ("method", method, METHODS)):
        if value not in accepted:
            raise ValueError(f"{name} = {value!r}: expected {', '.join(accepted)}")
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon = {epsilon!r}: expected values in [0, 1)")
    u, left = unit_samples(key, batch, method)
    if law == "uniform":
        return Time(u * (1 - epsilon), left + epsilon * u), jnp.ones_like(u)
    if scheduler is None:
        high, low = 1.0, epsilon**0.5
    else:
        high, low = (float(scheduler.float64(t, r).sigma) ** 0.5 for t, r in ((0.0, 1.0), (1 - epsilon, epsilon)))
    # root = sqrt(sigma) falls from `high` at t = 0 to `low` at t = 1 - epsilon.
    root = low + (high - low) * left
    kappa = (1 - high**2) + (high - low) * u * (high + root)
    weight = 2 * (high - low) / (1 - epsilon) * root
    if scheduler is None:
        return Time(kappa, root**2), weight
    time = scheduler.inverse(kappa, root**2)
    return time, weight / scheduler(time).d_alpha_t


def unit_samples(key: jax.Array, batch: int, method: str = "iid") -> tuple[jax.Array, jax.Array]:
    """(u, 1 - u), each (batch,) float32 and uniform on [0, 1]; `method` sets how they depend on each other."""
    draw_key, order_key = jax.random.split(key)
    if method == "antithetic":
        u, left = uniform_pair(draw_key, ((batch + 1) // 2,))
        return jnp.concatenate([u, left])[:batch], jnp.concatenate([left, u])[:batch]
    u, left = uniform_pair(draw_key, (1 if method == "systematic" else batch,))
    if method == "iid":
        return u, left
    stratum = jax.random.permutation(order_key, batch).astype(jnp.float32)
    return (stratum + u) * (1 / batch), (batch - 1 - stratum + left) * (1 / batch)
