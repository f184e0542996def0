"""A velocity of a path, and those of any conditional law from a flux between states (mathematics.md C.2, 4).

For any law tau on the states, j(x, z) = [tau(z) dC(x) - tau(x) dC(z)]_+ moves C at the slope dC, so u(x, z) = j / C(z)
generates C_t. tau = C is kinetic-optimal; tau ~ C^a is "power a" (a = 0, uniform: Multiflow's R*); a -> inf sends every
loss to the mode and every gain from it.
"""

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.flow.sources import Source
from dfm_jax.flow.time import Time, TimeLike, as_time, expand, floating
from dfm_jax.flow.tokens import check_tokens, one_hot_like


class Velocity(abc.ABC):
    """A velocity of a path, from posterior logits."""

    @abc.abstractmethod
    def rates(self, post: jax.Array, x_t: jax.Array, time: Time, path: Any, source: Source) -> jax.Array:
        """u(x, z) for x != z, (B, L, S), from the posterior (B, L, S); what it says at x = z is not read."""

    def __call__(self, logits: jax.Array, x_t: jax.Array, t: TimeLike, path: Any, source: Source) -> jax.Array:
        """u_t(., x_t), (B, L, S), from posterior logits (B, L, S). Raises ValueError for another last axis."""
        check_tokens(logits, x_t, source.num_states)
        post = jax.nn.softmax(floating(logits), axis=-1)
        here = one_hot_like(x_t, post) > 0
        rates = jnp.where(here, 0.0, self.rates(post, x_t, expand(as_time(t), logits.shape), path, source))
        return jnp.where(here, -rates.sum(axis=-1, keepdims=True), rates)


def reference_law(law: jax.Array, power: float | None) -> jax.Array:
    """tau ~ law^power over the last axis, uniform on the support for 0, the mode for inf; None: the law itself."""
    if power is None:
        return law
    support = law > 0
    if math.isinf(power):
        states = jnp.arange(law.shape[-1]).reshape((1,) * (law.ndim - 1) + (-1,))
        return (states == jnp.argmax(law, axis=-1)[..., None]).astype(law.dtype)
    weight = jnp.where(support, (law / law.max(axis=-1, keepdims=True)) ** power, 0.0)
    return weight / weight.sum(axis=-1, keepdims=True)


def flux(law: jax.Array, slope: jax.Array, z: jax.Array, power: float | None = None) -> jax.Array:
    """u(x, z) for x != z, of law's shape (..., S): rates out of state z (...) of a law and its slope dC/dt (..., S).

    power: see `reference_law`. 0 where the law has no mass at z; what it says at x = z is 0. z broadcasts.
    """
    z = jnp.broadcast_to(z, law.shape[:-1])[..., None]
    tau = reference_law(law, power)
    at_z, slope_z, tau_z = (jnp.take_along_axis(v, z, axis=-1) for v in (law, slope, tau))
    some = at_z > 0
    return jnp.where(some, jnp.maximum(tau_z * slope - tau * slope_z, 0.0) / jnp.where(some, at_z, 1.0), 0.0)
