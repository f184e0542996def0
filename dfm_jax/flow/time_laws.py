"""Laws of the training time over the global batch: where t is drawn, and with which weight (mathematics.md D.5)."""

import jax
import jax.numpy as jnp

from dfm_jax.flow.noise import uniform_pair
from dfm_jax.flow.scheduler_base import Scheduler
from dfm_jax.flow.time import Time

LAWS = ("uniform", "squared")
METHODS = ("iid", "stratified", "antithetic", "systematic")


def sample_times(
    key: jax.Array,
    batch: int,
    *,
    law: str = "uniform",
    method: str = "iid",
    epsilon: float = 0.0,
    scheduler: Scheduler | None = None,
) -> tuple[Time, jax.Array]:
    """Times of a global batch and the weights of their losses: (Time of (batch,), weight (batch,)), float32.

    E[weight * loss(t)] is, for every law and method, the mean of the loss over t ~ U[0, 1 - epsilon].

    law 'uniform': t ~ U[0, 1 - epsilon], weight 1 (published).
    law 'squared': sigma_t = (1-u)^2 with u ~ U, weight 2(1-u) / d kappa: finite variance for the losses that grow as
    lambda ~ 1/r. Without `scheduler`, the same in r: r = (1-u)^2, weight 2(1-u).

    method 'iid': independent. 'stratified': u_i = (U_i + pi(i)) / batch, pi a random permutation. 'antithetic': the
    second half of the batch is 1 - u of the first. 'systematic': stratified with one U for all.
    """
    for name, value, accepted in (("law", law, LAWS), ("method", method, METHODS)):
        if value not in accepted:
            raise ValueError(f"{name}={value!r}: accepted {', '.join(accepted)}")
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon={epsilon!r}: accepted values in [0, 1)")
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
    """(u, 1 - u), each (batch,) float32 and uniform on [0, 1], with the dependence that `method` names."""
    draw_key, order_key = jax.random.split(key)
    if method == "antithetic":
        u, left = uniform_pair(draw_key, ((batch + 1) // 2,))
        return jnp.concatenate([u, left])[:batch], jnp.concatenate([left, u])[:batch]
    u, left = uniform_pair(draw_key, (1 if method == "systematic" else batch,))
    if method == "iid":
        return u, left
    stratum = jax.random.permutation(order_key, batch).astype(jnp.float32)
    return (stratum + u) * (1 / batch), (batch - 1 - stratum + left) * (1 / batch)
