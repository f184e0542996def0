"""Samplers without steps: they simulate the mixture path's continuous-time chain, one model evaluation per jump (E.1).

On the clock s = -log sigma every token jumps to x_1 ~ posterior at rate 1, for every schedule. If n tokens may jump,
the next jump comes after E / n with E ~ Exp(1), at one of them chosen uniformly. The posterior is taken at that time,
so there is no discretisation error. With the mask source only masks jump, each once, and the chain ends after that
(first hitting). With another source every token keeps jumping until sigma = 0, often to the token it already is. The
chain is then stopped at sigma = delta, and one exact step does the rest (thinning).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.flow import categorical
from dfm_jax.flow.prediction import PathLike
from dfm_jax.flow.samplers.denoiser import Denoiser, Needs, Question, draw_where
from dfm_jax.flow.samplers.moves import State


@dataclasses.dataclass(frozen=True)
class FirstHitting:
    """For the mask source: reveals one token at a time, in random order. Exact, with at most L model evaluations."""

    name = "first_hitting"
    delta = 0.0

    def check(self, path: PathLike, source: Any) -> None:
        """Raises ValueError for a path other than the mixture, and for a source without a mask."""
        check_path(self.name, path)
        if source.mask_id is None:
            raise ValueError("step = 'first_hitting': expected a mask source only")


@dataclasses.dataclass(frozen=True)
class Thinning:
    """For any source: exact up to sigma = delta, then one `Exact` step; about L log(1/delta) + 1 model evaluations.

    Raises ValueError unless 0 < delta <= 1.
    """

    delta: float = 0.01
    name = "thinning"

    def __post_init__(self):
        if not 0 < self.delta <= 1:
            raise ValueError(f"delta = {self.delta}: expected 0 < delta <= 1")

    def check(self, path: PathLike, source: Any) -> None:
        """Raises ValueError for a path other than the mixture. Every source is accepted."""
        check_path(self.name, path)


Events = FirstHitting | Thinning


def check_path(name: str, path: PathLike) -> None:
    """Raises ValueError unless every token of the path jumps to x_1 at the clock's rate (`Path.jumps_alike`)."""
    if not path.jumps_alike:
        raise ValueError(f"step = {name!r}: expected the mixture path only")


def simulate(
    denoiser: Denoiser,
    scheduler: Any,
    mask_id: int | None,
    delta: float,
    keys: jax.Array,
    x: jax.Array,
    fixed: jax.Array,
    ends: jax.Array,
    saved_sigma: jax.Array,
    *,
    group: int,
) -> tuple[State, jax.Array]:
    """Lets the positions of x (B, L) that are not `fixed` jump one at a time. Each sequence has its own clock.

    A sequence stops before its next jump would come after the end or after `delta`. From `delta` one exact step leads
    to the end.

    Args:
        scheduler: that of the network's training. The law of the samples does not depend on the sampler's schedule.
        mask_id: the mask, where only masks jump; None where every token does.
        keys: (B,) typed, one per sequence.
        fixed: (B, L) bool.
        ends: (2,) float32, sigma at the start and at the end.
        saved_sigma: (K,) float32, sigma at the times of the states to return.
        group: rows per call of the head in the exact step (static).

    Returns: the state at the end, and the tokens (K, B, L).
    """
    batch, length = x.shape
    stop = jnp.clip(jnp.float32(delta), ends[1], ends[0])
    floor = jnp.log(stop)
    lowest = jnp.log(saved_sigma)

    def may_jump(x):
        return ~fixed if mask_id is None else ~fixed & (x == mask_id)

    def unfinished(state):
        return (may_jump(state[1]).any(-1) & (state[2] > floor)).any()

    def one_event(state):
        event, x, log_sigma, saved, jumps = state
        waiting = may_jump(x)
        count = waiting.sum(-1, dtype=jnp.int32)
        event_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, event)))(keys)
        bits = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(event_keys[:, 0])
        u = categorical.uniform(bits)
        wait = -jnp.log1p(-u[:, 0]) / jnp.maximum(count, 1).astype(jnp.float32)
        later = log_sigma - wait
        active = (count > 0) & (later > floor)
        # A state lasts until the next jump. Store it for every time of `saved_sigma` before that.
        before = (lowest[:, None] > later[None, :]) & (lowest[:, None] <= log_sigma[None, :])
        done = ~active[None, :] & (lowest[:, None] <= log_sigma[None, :])
        saved = jnp.where((before | done)[:, :, None], x[None], saved)
        chosen = jnp.minimum((u[:, 1] * count.astype(jnp.float32)).astype(jnp.int32), count - 1)
        rank = jnp.cumsum(waiting.astype(jnp.int32), -1) - 1
        place = jnp.argmax(waiting & (rank == chosen[:, None]), -1).astype(jnp.int32)
        t = scheduler.inverse(-jnp.expm1(later), jnp.exp(later)).t
        features = denoiser.features(x, t)
        sequence = jnp.arange(batch)
        x_1 = denoiser.draw(event_keys[:, 1], features[sequence, place], x[sequence, place], t).astype(x.dtype)
        here = jax.lax.broadcasted_iota(jnp.int32, (batch, length), 1) == place[:, None]
        x = jnp.where(here & active[:, None], x_1[:, None], x)
        return event + 1, x, jnp.where(active, later, -jnp.inf), saved, jumps + active.astype(jnp.int32)

    saved = jnp.broadcast_to(x[None], (len(saved_sigma), batch, length))
    log_sigma = jnp.log(ends[0]) + 0.0 * x[:, 0].astype(jnp.float32)
    start = (jnp.int32(0), x, log_sigma, saved, 0 * x[:, 0])
    _, x, log_sigma, saved, jumps = jax.lax.while_loop(unfinished, one_event, start)
    rest = lowest[:, None] <= log_sigma[None, :]
    saved = jnp.where(rest[:, :, None], x[None], saved)
    if delta == 0:
        return State(x, fixed, jumps, jumps, {}), saved

    # One x_1 and one uniform per token, so that states on the way belong to one trajectory. The key is that of an event
    # number that is never reached. The actual count depends on the batch, and a sequence must not.
    last_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, jnp.uint32(0xFFFFFFFF))))(keys)
    u = categorical.uniform(jax.vmap(lambda key: jax.random.bits(key, (length,), jnp.uint32))(last_keys[:, 0]))
    t = jnp.broadcast_to(scheduler.inverse(1.0 - stop, stop).t, (batch,)).astype(jnp.float32)
    needed = may_jump(x) & (u < 1.0 - ends[1] / stop)
    question = Question(x, t, needed, last_keys[:, 1])
    x_1 = draw_where(denoiser, question, Needs.DRAWS, group).x_1
    on_the_way = needed[None] & (u[None] < 1.0 - (saved_sigma / stop)[:, None, None])
    final = State(jnp.where(needed, x_1, x), fixed, jumps, jumps, {}).counted(question)
    return final, jnp.where(on_the_way, x_1[None], saved)
