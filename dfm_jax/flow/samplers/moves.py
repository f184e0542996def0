"""A sampler as a sequence of moves: what each asks of the model, and how the answer changes the state.

Move n is a pure map of the state and the answer, for all its noise is keyed by (sequence, position, n):

    question = moves.ask(row, state, keys)            # row: the scalars of move n
    answer = draw_where(denoiser, question, ...)      # trunk and head, by whoever drives the moves
    state = moves.move(row, state, question, answer)

A step, a round of a corrector and an evaluation of `unmask` are all moves. `ask` and `move` work on each sequence by
itself, so sequences of a batch may also be at different moves (`jax.vmap` over the batch, with a row for each).
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow import categorical
from dfm_jax.flow.samplers.denoiser import Answer, Needs, Question
from dfm_jax.flow.samplers.fresh import fresh_tokens
from dfm_jax.flow.samplers.step import Row
from dfm_jax.flow.tree import Kept, Tree


class State(NamedTuple):
    """Where a batch of trajectories is.

    x: (B, L) int32 tokens. fixed: (B, L) bool, positions that never change. evaluations: (B,) int32, how often the
    trunk was needed so far by each sequence. head_rows: (B,) int32, at how many positions the head was. kept: name ->
    (B, ...), what a sampler remembers beside the tokens.
    """

    x: jax.Array
    fixed: jax.Array
    evaluations: jax.Array
    head_rows: jax.Array
    kept: dict[str, jax.Array]

    @classmethod
    def start(cls, x: jax.Array, fixed: jax.Array, kept: dict[str, jax.Array] | None = None) -> "State":
        """The state before the first move."""
        none = jnp.zeros(x.shape[0], jnp.int32) + 0 * x[:, 0]
        return cls(x, fixed, none, none, {} if kept is None else kept)

    def counted(self, question: Question) -> "State":
        """The same with one more evaluation, two under guidance, of the sequences in which something is needed."""
        rows = question.needed.sum(-1, dtype=jnp.int32)
        runs = (rows > 0).astype(jnp.int32) * (1 if question.guidance is None else 2)
        return self._replace(evaluations=self.evaluations + runs, head_rows=self.head_rows + rows)


class Evaluations(NamedTuple):
    """What each sequence of a batch asked of the model, (B,) int32.

    trunk: inputs that the trunk evaluated. head_rows: rows of the vocabulary head. sequential: evaluations one after
    the other; with drafts these are the windows, each of several inputs. used: inputs whose answers the sampler used;
    the others were wrong guesses. Without drafts trunk, sequential and used are one number.
    """

    trunk: jax.Array | np.ndarray
    head_rows: jax.Array | np.ndarray
    sequential: jax.Array | np.ndarray
    used: jax.Array | np.ndarray


class Moves(Tree, abc.ABC):
    """The moves of a trajectory. A subclass names its array attributes in `leaves` (`flow.Tree`).

    needs: what the moves need from the model, all together. ends_early: whether a sequence ends when it is `unfinished`
    no longer, perhaps before the last row. What its frames go by is then said by `frames`. always_asks: whether an
    unfinished sequence needs an answer in each of its moves.
    """

    ends_early: Any = False
    always_asks: Any = False

    @property
    @abc.abstractmethod
    def needs(self) -> Needs:
        """See the class."""

    @abc.abstractmethod
    def ask(self, row: Row, state: State, keys: jax.Array) -> Question:
        """What move `row` asks. row: name -> scalar, with `number` (the move's number n) and `time` (the network's).

        keys: (B,) typed, one per sequence; those of the whole trajectory, not of the move.
        """

    @abc.abstractmethod
    def move(self, row: Row, state: State, question: Question, answer: Answer) -> State:
        """The state after the move, from the answers (B, L) to its question. It does not count evaluations."""

    def kept(self, x: jax.Array) -> dict[str, jax.Array]:
        """What the state keeps beside the tokens x (B, L), before the first move."""
        return {}

    def unfinished(self, state: State) -> jax.Array:
        """(B,) bool: whether a later move may change the sequence. Asked only if `ends_early`."""
        raise NotImplementedError

    def frames(self, state: State, saved: jax.Array, at: jax.Array) -> jax.Array:
        """The tokens (K, B, L) of frames at `at` (K,) after the move to `state`, from those before it, `saved`.

        Asked only if `ends_early`.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class Around(Moves):
    """The moves of `base`, a part of which a subclass changes."""

    leaves: ClassVar[tuple[str, ...]] = ("base",)

    base: Any

    @property
    def needs(self) -> Needs:
        return self.base.needs

    @property
    def ends_early(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.base.ends_early

    def move(self, row: Row, state: State, question: Question, answer: Answer) -> State:
        return self.base.move(row, state, question, answer)

    def kept(self, x: jax.Array) -> dict[str, jax.Array]:
        return self.base.kept(x)

    def unfinished(self, state: State) -> jax.Array:
        return self.base.unfinished(state)

    def frames(self, state: State, saved: jax.Array, at: jax.Array) -> jax.Array:
        return self.base.frames(state, saved, at)


@dataclasses.dataclass(frozen=True, eq=False)
class StepMoves(Moves):
    """The moves of a `Step`, one for each row of its plan.

    step, source: `Kept.wrap` of the source.
    hidden: the mask, on a path that carries tokens over from the mask source; a token other than it is x_1. Else None.
    """

    leaves: ClassVar[tuple[str, ...]] = ("step", "source")

    step: Any
    source: Any
    hidden: int | None

    @property
    def needs(self) -> Needs:
        return self.step.needs

    def ask(self, row: Row, state: State, keys: jax.Array) -> Question:
        x, source = state.x, Kept.unwrap(self.source)
        batch, length = x.shape
        step_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, row["number"]), 3))(keys)
        bits = jax.vmap(lambda key: jax.random.bits(key, (self.step.words, length), jnp.uint32))(step_keys[:, 0])
        u = categorical.uniform(jnp.moveaxis(bits, 1, 0))
        y = fresh_tokens(self.step.fresh, source, step_keys[:, 1], x)
        needed = jnp.zeros(x.shape, jnp.bool_)
        if Needs.DRAWS in self.step.needs:
            needed = self.step.needs_x_1(row, x, u, source) & ~state.fixed
            if self.hidden is not None:
                needed &= x == self.hidden
        return Question(x, jnp.broadcast_to(row["time"], (batch,)), needed, step_keys[:, 2], noise=(u, y))

    def move(self, row: Row, state: State, question: Question, answer: Answer) -> State:
        u, y = question.noise
        x = self.step.transition(row, state.x, answer.x_1, u, y, Kept.unwrap(self.source))
        return state._replace(x=jnp.where(state.fixed, state.x, x))
