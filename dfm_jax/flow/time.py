"""Time on the path, with its complement carried beside it.

Near t = 1 everything that matters depends on r = 1 - t, which float32 cannot recover from t. So a time is the pair
(t, r), and every function of `flow` that has a `t` argument takes an array or a `Time`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Time(NamedTuple):
    """A time t in [0, 1] (0 source, 1 data) and r = 1 - t, arrays of one shape; r is exact where it is small."""

    t: Any
    r: Any


TimeLike = Any  # an array of times in [0, 1], a number, or a Time


def as_time(t: TimeLike) -> Time:
    """`t` as a `Time` of floating-point jax arrays; r = 1 - t where the caller did not give it.

    Raises ValueError when a concrete time lies outside [0, 1]; traced times cannot be looked at.
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
            raise ValueError(f"t of shape {x.shape}: accepted leading axes of {shape}")
        return x.reshape(x.shape + (1,) * (len(shape) - x.ndim))

    return Time(reshape(time.t), reshape(time.r))


def host_time(t: TimeLike, r: Any = None) -> Time:
    """`t` as a `Time` of numpy float64, for scalars that are computed on the host; r = 1 - t unless given."""
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
    """Raises ValueError unless every value of `x` is in [0, 1]; a traced value passes unseen."""
    if isinstance(x, Tracer):
        return
    values = np.asarray(x)
    good = (values >= 0) & (values <= 1)
    if not good.all():
        raise ValueError(f"{name}={values[~good].ravel()[0]}: accepted values in [0, 1]")
