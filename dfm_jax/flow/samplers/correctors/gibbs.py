"""The rounds of correctors at a fixed time t, as moves. Each is one evaluation."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dfm_jax.flow import categorical
from dfm_jax.flow.samplers.correctors.settings import ForwardBackward, Gibbs, carries
from dfm_jax.flow.samplers.denoiser import Answer, Needs, Question
from dfm_jax.flow.samplers.moves import Moves, State
from dfm_jax.flow.samplers.step import Row
from dfm_jax.flow.tree import Kept


@dataclasses.dataclass(frozen=True, eq=False)
class AtFixedTime(Moves):
    """A round at the time t of row["time"]; row["kappa"], row["sigma"] are the schedule's there.

    kept_path, kept_source: `Kept.wrap` of them. The path's clock is that of the training, so that its C_t at
    row["time"] has row["kappa"].
    """

    leaves: ClassVar[tuple[str, ...]] = ("kept_path", "kept_source")

    setting: Any
    kept_path: Any
    kept_source: Any

    @property
    def path(self) -> Any:
        return Kept.unwrap(self.kept_path)

    @property
    def source(self) -> Any:
        return Kept.unwrap(self.kept_source)

    @property
    def hidden(self) -> int | None:
        """The mask, if every other token is x_1; else None."""
        return self.source.mask_id if carries(self.path, self.source) else None

    @property
    def needs(self) -> Needs:
        return self.setting.needs(self.path, self.source, False)

    def _noise(self, row: Row, state: State, keys: jax.Array, words: int) -> tuple[jax.Array, jax.Array]:
        """Uniforms (words, B, L) and the move's keys (B, 4)."""
        split = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, row["number"]), 4))(keys)
        shape = (words, state.x.shape[1])
        bits = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(split[:, 0])
        return categorical.uniform(jnp.moveaxis(bits, 1, 0)), split

    def _noised(self, split: jax.Array, x_1: jax.Array, t: jax.Array) -> jax.Array:
        """x_t ~ C_t(. | x_1), (B, L)."""
        x_0 = self.source.sample(split[:, 2], x_1.shape).astype(x_1.dtype)
        return self.path.sample(split[:, 3], x_0, x_1, t).x_t.astype(x_1.dtype)


class MaskGibbs(AtFixedTime):
    """With the mask source: masks at the sites, one evaluation, then kappa posterior + sigma mask at each."""

    def ask(self, row: Row, state: State, keys: jax.Array) -> Question:
        assert self.hidden is not None
        u, split = self._noise(row, state, keys, 2)
        free = ~state.fixed
        if self.setting.informed is None:
            sites = self.setting.choose(u[0], free)
            needed = sites & (u[1] < row["kappa"])
        else:
            # The tokens that fit worst are all drawn again, so that as many stay revealed as the time wants.
            sites = self.setting.choose(u[0], free & (state.x != self.hidden), state.kept["log_prob"])
            needed = sites
        x = jnp.where(sites, jnp.int32(self.hidden), state.x)
        return Question(x, jnp.broadcast_to(row["time"], (len(x),)), needed, split[:, 1], noise=sites)

    def move(self, row: Row, state: State, question: Question, answer: Answer) -> State:
        # Where nothing is needed the answer is the mask that was put there.
        return state._replace(x=jnp.where(question.noise, answer.x_1, state.x))


class Redraws(AtFixedTime):
    """x_1 ~ posterior, or xhat, at the sites, then x ~ C_t(. | x_1)."""

    def ask(self, row: Row, state: State, keys: jax.Array) -> Question:
        x = state.x
        u, split = self._noise(row, state, keys, 1)
        t = jnp.broadcast_to(row["time"], (len(x),))
        free = ~state.fixed
        informed = self.setting.informed is not None
        sites = free if informed else self.setting.choose(u[0], free)
        needed = sites if self.hidden is None else sites & (x == self.hidden)
        given = x if Needs.AT_GIVEN in self.needs else None
        shift = -self._own_shift(x, t) if Needs.LEAVE_ONE_OUT in self.needs else None
        return Question(x, t, needed, split[:, 1], given, shift, noise=(u[0], sites, split))

    def move(self, row: Row, state: State, question: Question, answer: Answer) -> State:
        u, sites, split = question.noise
        if self.setting.informed is not None:
            sites = self.setting.choose(u, sites, self._log_fit(row, question, answer))
        drawn = self._noised(split, answer.x_1, question.t)
        return state._replace(x=jnp.where(sites, drawn, state.x))

    def _own_shift(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """What x_t adds to its own logit, (B, L) float32 nats."""
        return self.path.loo_logit_shift(x, t, self.source).astype(jnp.float32)

    def _log_fit(self, row: Row, question: Question, answer: Answer) -> jax.Array:
        """log(kappa xhat(z) + sigma p(z)), the log-probability of z given the others."""
        assert answer.at_given is not None
        log_p = answer.at_given
        if Needs.LEAVE_ONE_OUT not in self.needs:
            # post(z) is prop. to (1 + rho) xhat(z).
            rho = jnp.expm1(self._own_shift(question.x, question.t))
            log_p = log_p - jnp.log1p(rho * jnp.maximum(1.0 - jnp.exp(log_p), 0.0))
        return jnp.log(row["kappa"] * jnp.exp(log_p) + row["sigma"] * self.source.probs(question.x))


class BackAndForth(AtFixedTime):
    """From s back to v by noise, which the question does; then an exact step from v to s, which the answer does."""

    def ask(self, row: Row, state: State, keys: jax.Array) -> Question:
        u, split = self._noise(row, state, keys, 2)
        y = self.source.sample(split[:, 2], state.x.shape).astype(state.x.dtype)
        x = jnp.where(~state.fixed & (u[0] < row["back"]), y, state.x)
        needed = ~state.fixed & (u[1] < row["again"])
        if self.hidden is not None:
            needed &= x == self.hidden
        return Question(x, jnp.broadcast_to(row["time"], (len(x),)), needed, split[:, 1])

    def move(self, row: Row, state: State, question: Question, answer: Answer) -> State:
        return state._replace(x=jnp.where(question.needed, answer.x_1, question.x))


def rounds_of(setting: Any, path: Any, source: Any) -> AtFixedTime:
    """The moves of a corrector at a fixed time."""
    made: type[AtFixedTime] = BackAndForth
    if not isinstance(setting, ForwardBackward):
        made = MaskGibbs if isinstance(setting, Gibbs) and carries(path, source) else Redraws
    return made(setting, Kept.wrap(path), Kept.wrap(source))
