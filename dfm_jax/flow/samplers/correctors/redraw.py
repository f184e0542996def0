"""A corrector's round under `unmask`: tokens that are revealed already are masked and drawn again."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfm_jax.flow import categorical
from dfm_jax.flow.samplers.correctors.settings import PosteriorCorrection
from dfm_jax.flow.samplers.denoiser import Answer, Needs, Question
from dfm_jax.flow.samplers.moves import Moves, State
from dfm_jax.flow.samplers.step import Row
from dfm_jax.flow.samplers.unmasking.unmask import UnmaskMoves


@dataclasses.dataclass(frozen=True, eq=False)
class RedrawMoves(Moves):
    """Masks at sites among the revealed free positions, one evaluation, then a draw from the posterior at each.

    The pattern of masks stays. A state of `unmask` is at no time of the path, so there is no p_t to keep; the law of
    the revealed tokens given the pattern is kept, one site at a time. A round acts on the sequences with
    state.kept["due"] (B,) > 0.
    """

    leaves: ClassVar[tuple[str, ...]] = ("unmask",)

    setting: PosteriorCorrection
    unmask: UnmaskMoves

    @property
    def needs(self) -> Needs:
        return Needs.DRAWS | (Needs.LOG_PROB if self.setting.informed is not None else Needs.NOTHING)

    def ask(self, row: Row, state: State, keys: jax.Array) -> Question:
        x, mask = state.x, self.unmask.mask_id
        split = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, row["number"]), 2))(keys)
        bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint32))(split[:, 0])
        revealed = ~state.fixed & (x != mask) & (state.kept["due"] > 0)[:, None]
        sites = self.setting.choose(categorical.uniform(bits), revealed, state.kept.get("log_prob"))
        t = self.unmask.time(row, state, self.unmask.masked(state) | sites)
        return Question(jnp.where(sites, jnp.int32(mask), x), t, sites, split[:, 1])

    def move(self, row: Row, state: State, question: Question, answer: Answer) -> State:
        due = jnp.maximum(state.kept["due"] - 1, 0)
        x = jnp.where(question.needed, answer.x_1, state.x)
        return state._replace(x=x, kept={**state.kept, "due": due})
