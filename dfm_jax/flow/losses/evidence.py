"""How much x_t^i tells about x_1^i (the evidence), and closed forms for leave-one-out logits (mathematics.md D.3).

Let xhat = p(x_1^i | x_t without x_t^i). The posterior differs from xhat only at the index z = x_t^i:
    logits_post = logits_loo + 1[v = z] log1p(rho_z),   rho_z = kappa / (sigma p(z)).
Hence C_t(x | xhat) = sigma p(x) (1 + rho_x xhat(x)). The functions below keep their digits in float32 near both ends
of the path. They work elementwise: all arguments broadcast to the shape of the result.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# At t = 1 sigma p is 0. This floor caps rho, far beyond any time that is drawn; log1p(rho) stays exact to 1e-26.
SIGMA_FLOOR = 1e-28
# The backward pass squares denominators; the square must not underflow in float32.
DENOMINATOR_FLOOR = 1e-18


class Evidence(NamedTuple):
    """The evidence of a token x at time t: kappa, noise = sigma p(x), and rho = kappa / noise.

    stay = noise / (noise + kappa) and jump = kappa / (noise + kappa) are weights that sum to 1.
    """

    kappa: jax.Array
    noise: jax.Array
    rho: jax.Array
    stay: jax.Array
    jump: jax.Array


def evidence(kappa: jax.Array, sigma: jax.Array, p: jax.Array) -> Evidence:
    """The `Evidence` of tokens with source probability p, at kappa and sigma."""
    noise = sigma * p
    total = jnp.maximum(noise + kappa, SIGMA_FLOOR)
    floor = jnp.maximum(noise, SIGMA_FLOOR)
    # A token with p = 0 cannot occur at t = 0. If it is asked for all the same, it says nothing about x_1.
    stay = jnp.where(noise + kappa > 0, noise / total, 1.0)
    return Evidence(kappa, noise, kappa / floor, stay, kappa / total)


def log_evidence(e: Evidence, log_xhat: jax.Array) -> jax.Array:
    """log1p(rho xhat), nats, at a token whose leave-one-out log-probability is `log_xhat`."""
    return jnp.log1p(e.rho * jnp.exp(log_xhat))


def log_mixture(e: Evidence, log_xhat: jax.Array) -> jax.Array:
    """log(stay + jump xhat) = log[C(x | xhat) / C(x | x)] <= 0, nats.

    It keeps its digits where xhat is near 1 and where xhat underflows.
    """
    xhat = jnp.exp(log_xhat)
    near = e.stay + e.jump * xhat > 0.5
    missing = -jnp.expm1(jnp.where(near, log_xhat, 0.0))
    far = jnp.logaddexp(jnp.log(e.stay), jnp.log(e.jump) + jnp.where(near, 0.0, log_xhat))
    return jnp.where(near, jnp.log1p(-e.jump * missing), far)


def replaced(e: Evidence, log_xhat: jax.Array) -> jax.Array:
    """(1 - xz) / (noise + kappa xz) = (1 - post(z)) / noise with xz = xhat(z); finite where noise = 0."""
    xhat = jnp.exp(log_xhat)
    return -jnp.expm1(log_xhat) / jnp.maximum(e.noise + e.kappa * xhat, DENOMINATOR_FLOOR)


def cross_entropy_of_kept(e: Evidence, log_xhat: jax.Array) -> jax.Array:
    """-log post(z) = log1p((1/xz - 1) / (1 + rho)), nats: the cross-entropy where z = x_1, with xz = xhat(z)."""
    moderate = log_xhat > -60.0
    near = jnp.log1p(jnp.expm1(-jnp.where(moderate, log_xhat, -60.0)) / (1.0 + e.rho))
    far = log_evidence(e, log_xhat) - log_xhat - jnp.log1p(e.rho)
    return jnp.where(moderate, near, far)


def itakura_saito(delta: jax.Array, log1p_delta: jax.Array) -> jax.Array:
    """delta - log1p(delta) >= 0; by its series for small delta, where the difference would cancel."""
    small = jnp.abs(delta) < 1e-2
    d = jnp.where(small, delta, 0.0)
    series = d * d * (0.5 + d * (-1 / 3 + d * (0.25 - d * 0.2)))
    return jnp.where(small, series, delta - log1p_delta)
