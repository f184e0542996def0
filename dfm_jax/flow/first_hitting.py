"""First-hitting sampling of the mask path: the continuous-time chain itself, one model evaluation per revealed
token."""

from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.flow import categorical
from dfm_jax.flow.denoiser import Denoiser


def first_hitting(
    denoiser: Denoiser,
    scheduler: Any,
    mask_id: int,
    keys: jax.Array,
    x: jax.Array,
    free: jax.Array,
    ends: jax.Array,
    saved_sigma: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Reveal the masked free positions of x (B, L) one at a time, each sequence on its own clock.

    With n positions masked the next jump is at log sigma' = log sigma - E / n, E ~ Exp(1); the position is uniform
    among the masked ones and x_1 ~ posterior at the time of the jump. Exact in law at any time: no step size.
    Sequences stop where the next jump would lie past the end. ends (2,) float32: sigma at start and end. keys
    (B,), free (B, L) bool. `scheduler` is the one the network was trained with: the law does not depend on the
    sampler's own clock.

    Returns x at the end and the states (K, B, L) at the times where sigma is saved_sigma (K,) float32.
    """
    batch, length = x.shape
    first, floor = jnp.log(ends[0]), jnp.log(ends[1])
    lowest = jnp.log(saved_sigma)

    def masked(x):
        return (x == mask_id) & free

    def unfinished(state):
        return (masked(state[1]).any(-1) & (state[2] > floor)).any()

    def reveal_one(state):
        event, x, log_sigma, saved = state
        hidden = masked(x)
        count = hidden.sum(-1, dtype=jnp.int32)
        event_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, event)))(keys)
        bits = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(event_keys[:, 0])
        u = categorical.uniform(bits)
        wait = -jnp.log1p(-u[:, 0]) / jnp.maximum(count, 1).astype(jnp.float32)
        later = log_sigma - wait
        active = (count > 0) & (later > floor)
        # A state stays what it is until the jump: keep it at every asked time before the jump.
        before = (lowest[:, None] > later[None, :]) & (lowest[:, None] <= log_sigma[None, :])
        done = ~active[None, :] & (lowest[:, None] <= log_sigma[None, :])
        saved = jnp.where((before | done)[:, :, None], x[None], saved)
        chosen = jnp.minimum((u[:, 1] * count.astype(jnp.float32)).astype(jnp.int32), count - 1)
        rank = jnp.cumsum(hidden.astype(jnp.int32), -1) - 1
        place = jnp.argmax(hidden & (rank == chosen[:, None]), -1).astype(jnp.int32)
        t = scheduler.inverse(-jnp.expm1(later), jnp.exp(later)).t
        features = denoiser.features(x, t)
        sequence = jnp.arange(batch)
        x_1 = denoiser.draw(event_keys[:, 1], features[sequence, place], x[sequence, place], t).astype(x.dtype)
        here = jax.lax.broadcasted_iota(jnp.int32, (batch, length), 1) == place[:, None]
        x = jnp.where(here & active[:, None], x_1[:, None], x)
        return event + 1, x, jnp.where(active, later, -jnp.inf), saved

    saved = jnp.broadcast_to(x[None], (len(saved_sigma), batch, length))
    log_sigma = first + 0.0 * x[:, 0].astype(jnp.float32)
    start = (jnp.int32(0), x, log_sigma, saved)
    _, x, log_sigma, saved = jax.lax.while_loop(unfinished, reveal_one, start)
    rest = lowest[:, None] <= log_sigma[None, :]
    return x, jnp.where(rest[:, :, None], x[None], saved)
