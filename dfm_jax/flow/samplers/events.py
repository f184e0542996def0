"""Samplers without steps: they simulate the mixture path's continuous-time chain, one model evaluation per jump (E.1).

On the clock s = -log sigma every token jumps to x_1 ~ posterior at rate 1, for every schedule. If n tokens may jump,
the next jump comes after E / n with E ~ Exp(1), at one of them chosen uniformly. The posterior is taken at that time,
so there is no discretisation error. With the mask source only masks jump, each once, and the chain ends after that
(first hitting). With another source every token keeps jumping until sigma = 0, often to the token it already is. The
chain is then stopped at sigma = delta, and one exact step does the rest (thinning).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dfm_jax.flow import categorical
from dfm_jax.flow.prediction import PathLike
from dfm_jax.flow.samplers.denoiser import Answer, Needs, Question
from dfm_jax.flow.samplers.moves import Moves, State
from dfm_jax.flow.samplers.step import Row


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


@dataclasses.dataclass(frozen=True, eq=False)
class EventMoves(Moves):
    """The jumps of a chain, each a move: when and where it comes is drawn from its number, before the model is asked.

    Each sequence has its own clock, kept["log_sigma"] (B,). It stops, at -inf, before a jump that would come after the
    end or after `delta`. Thinning has one more move then, an exact step to the end. Its key is that of a number that no
    jump has, so that a sequence does not depend on how many jumps others make. One x_1 and one uniform per token serve
    all its frames.

    scheduler: that of the network's training. The law of the samples does not depend on the sampler's schedule.
    hidden: the mask, where only masks jump; None where every token does. ends: (2,) float32, sigma at the start and at
    the end. Frames go by sigma.
    """

    leaves: ClassVar[tuple[str, ...]] = ("ends",)
    ends_early: ClassVar[bool] = True

    delta: float
    hidden: int | None
    scheduler: Any
    ends: Any

    @property
    def needs(self) -> Needs:
        return Needs.DRAWS

    @property
    def stop(self) -> jax.Array:
        """The sigma at which jumps end."""
        return jnp.clip(jnp.float32(self.delta), self.ends[1], self.ends[0])

    def may_jump(self, state: State) -> jax.Array:
        """(B, L) bool: the positions that may jump."""
        return ~state.fixed if self.hidden is None else ~state.fixed & (state.x == self.hidden)

    def kept(self, x: jax.Array) -> dict[str, jax.Array]:
        kept = {"log_sigma": jnp.log(jnp.asarray(self.ends)[0]) + 0.0 * x[:, 0].astype(jnp.float32)}
        if self.delta:
            kept |= {"done": x[:, 0] != x[:, 0], "jumped": 2.0 + 0.0 * x.astype(jnp.float32)}
        return kept

    def unfinished(self, state: State) -> jax.Array:
        if self.delta:
            return ~state.kept["done"]
        return self.may_jump(state).any(-1) & (state.kept["log_sigma"] > jnp.log(self.stop))

    def frames(self, state: State, saved: jax.Array, at: jax.Array) -> jax.Array:
        reached = state.kept["log_sigma"][None] >= jnp.log(at)[:, None]
        saved = jnp.where(reached[..., None], state.x[None], saved)
        if not self.delta:
            return saved
        on_the_way = state.kept["jumped"][None] < 1.0 - (at / self.stop)[:, None, None]
        return jnp.where(on_the_way, state.x[None], saved)

    def ask(self, row: Row, state: State, keys: jax.Array) -> Question:
        x, waiting, log_sigma = state.x, self.may_jump(state), state.kept["log_sigma"]
        count = waiting.sum(-1, dtype=jnp.int32)
        split = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, row["number"])))(keys)
        u = categorical.uniform(jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(split[:, 0]))
        later = log_sigma + jnp.log1p(-u[:, 0]) / jnp.maximum(count, 1).astype(jnp.float32)
        active = (count > 0) & (later > jnp.log(self.stop))
        chosen = jnp.minimum((u[:, 1] * count.astype(jnp.float32)).astype(jnp.int32), count - 1)
        rank = jnp.cumsum(waiting.astype(jnp.int32), -1) - 1
        needed = waiting & (rank == chosen[:, None]) & active[:, None]
        t = self.scheduler.inverse(-jnp.expm1(later), jnp.exp(later)).t
        question = Question(
            x, t, needed, jnp.broadcast_to(split[:, 1:], x.shape), noise=jnp.where(active, later, -jnp.inf)
        )
        if not self.delta:
            return question
        last = (log_sigma == -jnp.inf) & ~state.kept["done"]
        split = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, jnp.uint32(0xFFFFFFFF))))(keys)
        v = categorical.uniform(jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint32))(split[:, 0]))
        jumps = waiting & (v < 1.0 - jnp.asarray(self.ends)[1] / self.stop)
        at_stop = self.scheduler.inverse(1.0 - self.stop, self.stop).t.astype(jnp.float32)
        return question._replace(
            t=jnp.where(last, at_stop, t),
            needed=jnp.where(last[:, None], jumps, needed),
            keys=jnp.where(last[:, None], by_position(split[:, 1], x.shape[1]), question.keys),
            noise=(question.noise, last, v),
        )

    def move(self, row: Row, state: State, question: Question, answer: Answer) -> State:
        x = jnp.where(question.needed, answer.x_1, state.x)
        if not self.delta:
            return state._replace(x=x, kept={"log_sigma": question.noise})
        log_sigma, last, v = question.noise
        jumped = jnp.where(last[:, None] & question.needed, v, state.kept["jumped"])
        kept = {"log_sigma": log_sigma, "done": state.kept["done"] | last, "jumped": jumped}
        return state._replace(x=x, kept=kept)


def by_position(keys: jax.Array, length: int) -> jax.Array:
    """Keys (B, length) of keys (B,), one for each position."""
    return jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(length)))(keys)
