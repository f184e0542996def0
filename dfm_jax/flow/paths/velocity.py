"""The base class of velocities, and the velocities of a conditional law that a flux defines (mathematics.md C.2, 4).

A flux j(x, z) says how much probability moves from z to x. For any law tau on the states, the flux
j(x, z) = [tau(z) dC(x) - tau(x) dC(z)]_+ changes C at the slope dC. So u(x, z) = j(x, z) / C(z) generates C_t. tau = C
is kinetic-optimal. tau ~ C^a is called "power a": a = 0 is uniform (Multiflow's R*), and for a -> inf all probability
moves through the mode.
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
    """A velocity of a path: jump rates from the posterior p(x_1 | x_t)."""

    @abc.abstractmethod
    def rates(self, post: jax.Array, x_t: jax.Array, time: Time, path: Any, source: Source) -> jax.Array:
        """u(x, z) for x != z, (B, L, S) per unit of t, from the posterior (B, L, S). Entries at x = z are not used."""

    def __call__(self, logits: jax.Array, x_t: jax.Array, t: TimeLike, path: Any, source: Source) -> jax.Array:
        """u_t(., x_t), (B, L, S) per unit of t, from posterior logits (B, L, S); rows sum to 0.

        Raises ValueError for another last axis.
        """
        check_tokens(logits, x_t, source.num_states)
        post = jax.nn.softmax(floating(logits), axis=-1)
        here = one_hot_like(x_t, post) > 0
        rates = jnp.where(here, 0.0, self.rates(post, x_t, expand(as_time(t), logits.shape), path, source))
        return jnp.where(here, -rates.sum(axis=-1, keepdims=True), rates)


def reference_law(law: jax.Array, power: float | None) -> jax.Array:
    """tau ~ law^power over the last axis, of law's shape.

    Power 0 is uniform on the support, inf is the mode, and None is the law itself.
    """
    if power is None:
        return law
    support = law > 0
    if math.isinf(power):
        states = jnp.arange(law.shape[-1]).reshape((1,) * (law.ndim - 1) + (-1,))
        return (states == jnp.argmax(law, axis=-1)[..., None]).astype(law.dtype)
    weight = jnp.where(support, (law / law.max(axis=-1, keepdims=True)) ** power, 0.0)
    return weight / weight.sum(axis=-1, keepdims=True)


def flux(law: jax.Array, slope: jax.Array, z: jax.Array, power: float | None = None) -> jax.Array:
    """The rates u(x, z) out of state z (...) for a law (..., S) and its slope dC/dt (..., S), of law's shape.

    The rates are 0 at x = z, and where the law has no mass at z. z broadcasts. power: see `reference_law`.
    """
    z = jnp.broadcast_to(z, law.shape[:-1])[..., None]
    tau = reference_law(law, power)
    at_z, slope_z, tau_z = (jnp.take_along_axis(v, z, axis=-1) for v in (law, slope, tau))
    some = at_z > 0
    return jnp.where(some, jnp.maximum(tau_z * slope - tau * slope_z, 0.0) / jnp.where(some, at_z, 1.0), 0.0)
