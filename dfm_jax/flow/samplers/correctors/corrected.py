"""A sampler's moves with rounds of a corrector between them."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dfm_jax.flow.samplers.correctors.redraw import RedrawMoves
from dfm_jax.flow.samplers.correctors.settings import Correction
from dfm_jax.flow.samplers.denoiser import Answer, Needs, Question
from dfm_jax.flow.samplers.moves import Around, State
from dfm_jax.flow.samplers.step import Row


@dataclasses.dataclass(frozen=True, eq=False)
class Corrected(Around):
    """The moves of `base`, and those of `rounds` where row["corrects"].

    Both are asked in every move, since which one it is may differ between sequences; the model is run once.
    mask_id: the mask, if every other token is x_1; else None.
    """

    leaves: ClassVar[tuple[str, ...]] = ("base", "rounds")

    rounds: Any
    setting: Correction
    mask_id: int | None

    @property
    def needs(self) -> Needs:
        needs = self.base.needs | self.rounds.needs
        return needs | Needs.LOG_PROB if self.remembers else needs

    @property
    def remembers(self) -> bool:
        """Whether the state keeps the log-probability of each token at the time of revealing."""
        return getattr(self.setting, "informed", None) is not None and self.mask_id is not None

    @property
    def unmasks(self) -> bool:
        """Whether rounds are due by the state, and not by the row alone."""
        return isinstance(self.rounds, RedrawMoves)

    def kept(self, x: jax.Array) -> dict[str, jax.Array]:
        kept = self.base.kept(x)
        if self.remembers:
            kept["log_prob"] = 0.0 * x.astype(jnp.float32)
        if self.unmasks:
            kept["due"] = 0 * x[:, 0]
        return kept

    def unfinished(self, state: State) -> jax.Array:
        unfinished = self.base.unfinished(state)
        return unfinished | (state.kept["due"] > 0) if self.unmasks else unfinished

    def ask(self, row: Row, state: State, keys: jax.Array) -> Question:
        base, rounds = self.base.ask(row, state, keys), self.rounds.ask(row, state, keys)
        corrects, needs = row["corrects"], self.needs
        given = shift = None
        if Needs.AT_GIVEN in needs:
            given = _pick(corrects, rounds.given, base.given, state.x)
        if Needs.LEAVE_ONE_OUT in needs:
            shift = _pick(corrects, rounds.shift, base.shift, jnp.zeros(state.x.shape, jnp.float32))
        x, t, needed, draw_keys = (
            jnp.where(corrects, getattr(rounds, name), getattr(base, name)) for name in ("x", "t", "needed", "keys")
        )
        return Question(x, t, needed, draw_keys, given, shift, noise=(base, rounds))

    def move(self, row: Row, state: State, question: Question, answer: Answer) -> State:
        base, rounds = question.noise
        stepped, corrected = self.base.move(row, state, base, answer), self.rounds.move(row, state, rounds, answer)
        if self.unmasks:
            stepped = stepped._replace(kept={**stepped.kept, "due": self._due(state, stepped)})
        after = jax.tree.map(lambda one, other: jnp.where(row["corrects"], one, other), corrected, stepped)
        if not self.remembers:
            return after
        assert answer.log_prob is not None
        shown = question.needed & (after.x == answer.x_1) & (after.x != self.mask_id)
        log_prob = jnp.where(shown, answer.log_prob, state.kept["log_prob"])
        return after._replace(kept={**after.kept, "log_prob": log_prob})

    def _due(self, before: State, after: State) -> jax.Array:
        """The rounds (B,) that an evaluation of `unmask` calls for: if it revealed something, in the interval."""
        low, high = self.setting.interval
        share = self.base.share(after)
        acts = (after.x != before.x).any(-1) & (share >= low) & (share <= high)
        if not self.setting.at_the_end:
            acts &= self.base.unfinished(after)
        return jnp.where(acts, jnp.int32(self.setting.rounds), 0)


def _pick(corrects: Any, one: jax.Array | None, other: jax.Array | None, default: jax.Array) -> jax.Array:
    return jnp.where(corrects, default if one is None else one, default if other is None else other)
