"""Adaptive unmasking, for the mask source: evaluate, score the masks, reveal those that come first."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dfm_jax.flow import categorical
from dfm_jax.flow.prediction import PathLike
from dfm_jax.flow.samplers.denoiser import Answer, Needs, Question
from dfm_jax.flow.samplers.grid import check_count
from dfm_jax.flow.samplers.moves import Moves, State
from dfm_jax.flow.samplers.step import Row
from dfm_jax.flow.samplers.unmasking.orders import MOST_NOISE, ORDERS, TIE, ranks, score_of, within_bound


@dataclasses.dataclass(frozen=True)
class Unmask:
    """Reveals masks in an order that the model gives, x_1 ~ posterior at each, independently (mathematics.md E.5).

    order: 'confidence', 'margin', 'entropy', 'random' or 'drawn', see `orders.ORDERS`. 'drawn' lowers the temperature
    and is not exact even one at a time; the others are.

    How many an evaluation reveals, with F positions that are not fixed:
    - count = k: k masks. bound = gamma: the longest prefix of the order whose entropies less the largest sum to at most
      gamma nats, at least one. Each sequence then takes as many evaluations as it needs. The network is told the time
      kappa^{-1}(1 - n / F) on the schedule of the training, where n masks are left. `steps` and `scheduler` have no
      meaning, a frame for the time f is the last state with at most the share f revealed, and the grid must end at 1.
    - neither: by the schedule. floor(F sigma_s + 1/2) positions stay masked after the step to s. A step that would
      reveal nothing is skipped. The network is told the grid's time.

    noise: Gumbel noise on the score, times this. blocks: tokens per block; masks of an earlier block come first.

    Raises ValueError for an unknown order, count < 1, bound < 0, count together with bound, noise < 0, noise with
    order 'random', blocks < 1.
    """

    order: str = "confidence"
    count: int | None = None
    bound: float | None = None
    noise: float = 0.0
    blocks: int | None = None

    name: ClassVar[str] = "unmask"

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"order = {self.order!r}: expected {', '.join(ORDERS)}")
        for name in ("count", "blocks"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_count(name, value))
        if self.bound is not None and not self.bound >= 0:
            raise ValueError(f"bound = {self.bound}: expected a number of nats, 0 or more")
        if self.count is not None and self.bound is not None:
            raise ValueError(f"count = {self.count}, bound = {self.bound}: expected one of them")
        if not 0 <= self.noise < MOST_NOISE:
            raise ValueError(f"noise = {self.noise}: expected a number of 0 or more, below {MOST_NOISE:g}")
        if self.noise and self.order == "random":
            raise ValueError(f"noise = {self.noise}: expected 0 with order = 'random'")

    def check(self, path: PathLike, source: Any) -> None:
        """Raises ValueError unless `source` has a mask and `path` carries tokens over."""
        if source.mask_id is None:
            raise ValueError(f"step = 'unmask': expected a mask source, not {type(source).__name__}")
        if not path.carries_over:
            raise ValueError(f"step = 'unmask': expected a path that keeps revealed tokens, not {type(path).__name__}")

    @property
    def by_schedule(self) -> bool:
        """Whether the schedule says how many masks are revealed."""
        return self.count is None and self.bound is None

    @property
    def needs(self) -> Needs:
        """What it needs from the model."""
        return Needs.DRAWS | ORDERS[self.order] | (Needs.NOTHING if self.bound is None else Needs.ENTROPY)

    @property
    def looks_first(self) -> bool:
        """Whether it must hear the model before it chooses."""
        return self.order != "random" or self.bound is not None


@dataclasses.dataclass(frozen=True, eq=False)
class UnmaskMoves(Moves):
    """The moves of `Unmask`, one evaluation each. By the schedule, row["stay"] (L + 1,) says how many stay for each F.

    scheduler: that of the training.
    """

    unmask: Unmask
    mask_id: int
    scheduler: Any

    @property
    def needs(self) -> Needs:
        return self.unmask.needs

    @property
    def ends_early(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return not self.unmask.by_schedule

    @property
    def always_asks(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.ends_early  # while masks are left, at least one of them is revealed

    def masked(self, state: State) -> jax.Array:
        """(B, L) bool: the positions that are still to be revealed."""
        return ~state.fixed & (state.x == self.mask_id)

    def share(self, state: State) -> jax.Array:
        """(B,) float32: the share of the free positions that is revealed."""
        free = (~state.fixed).sum(-1)
        left = self.masked(state).sum(-1)
        return 1.0 - left.astype(jnp.float32) / jnp.maximum(free, 1).astype(jnp.float32)

    def frames(self, state: State, saved: jax.Array, at: jax.Array) -> jax.Array:
        reached = self.share(state)[None] <= at[:, None] + TIE
        return jnp.where(reached[..., None], state.x[None], saved)

    def unfinished(self, state: State) -> jax.Array:
        return self.masked(state).any(-1)

    def time(self, row: Row, state: State, masked: jax.Array) -> jax.Array:
        """The time (B,) that the network is told of a state with these masks (B, L)."""
        if self.unmask.by_schedule:
            return jnp.broadcast_to(row["time"], (len(state.x),))
        free = jnp.maximum((~state.fixed).sum(-1), 1).astype(jnp.float32)
        sigma = masked.sum(-1).astype(jnp.float32) / free
        return self.scheduler.inverse(1.0 - sigma, sigma).t.astype(jnp.float32)

    def ask(self, row: Row, state: State, keys: jax.Array) -> Question:
        unmask, masked, length = self.unmask, self.masked(state), state.x.shape[1]
        step_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, row["number"]), 2))(keys)
        bits = jax.vmap(lambda key: jax.random.bits(key, (length,), jnp.uint32))(step_keys[:, 0])
        u, left = categorical.uniform(bits), masked.sum(-1, dtype=jnp.int32)
        if unmask.bound is not None:
            most = left
        elif unmask.count is not None:
            most = jnp.minimum(left, unmask.count)
        else:
            stay = row["stay"][(~state.fixed).sum(-1)]
            most = jnp.maximum(left - stay, 0)
        if not unmask.looks_first:
            needed = masked & (ranks(u, masked, self._block(u), 0.0) < most[:, None])
        elif unmask.blocks is None:
            needed = masked & (most > 0)[:, None]
        else:
            # Blocks whose masks come after `most` others cannot be reached. Which of the rest come first is not known.
            before = ranks(jnp.zeros_like(u), masked, self._block(u), 0.0)
            ahead = jnp.where(masked, self._block(u), length)
            reached = jnp.where(masked & (before < most[:, None]), ahead, -1).max(-1)
            needed = masked & (ahead <= reached[:, None])
        return Question(state.x, self.time(row, state, masked), needed, step_keys[:, 1], noise=(u, most))

    def move(self, row: Row, state: State, question: Question, answer: Answer) -> State:
        u, most = question.noise
        chosen = self._chosen(question.needed, u, most, answer) if self.unmask.looks_first else question.needed
        return state._replace(x=jnp.where(chosen, answer.x_1, state.x))

    def _chosen(self, candidates: jax.Array, u: jax.Array, most: jax.Array, answer: Answer) -> jax.Array:
        unmask = self.unmask
        score = u if unmask.order == "random" else score_of(unmask.order, answer)
        if unmask.noise:
            score = score + unmask.noise * -jnp.log(-jnp.log(u))
        exact = unmask.order == "random" or unmask.noise > 0  # random scores have no ties
        rank = ranks(score, candidates, self._block(u), 0.0 if exact else TIE)
        if unmask.bound is not None:
            assert answer.entropy is not None
            most = within_bound(rank, candidates, answer.entropy, unmask.bound)
        return candidates & (rank < most[:, None])

    def _block(self, like: jax.Array) -> jax.Array:
        position = jax.lax.broadcasted_iota(jnp.int32, like.shape, 1)
        return position // self.unmask.blocks if self.unmask.blocks else jnp.zeros_like(position)
