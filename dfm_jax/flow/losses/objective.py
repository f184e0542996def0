"""A loss is a query to the vocabulary head and a formula over its answer (mathematics.md D.2, D.3).

query = objective.query(x_1, x_t, t)            # what the head must give
loss = objective(answer, x_1, x_t, t)           # (B, L) nats, elementwise after that
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dfm_jax.flow.head import HeadAnswer, HeadQuery
from dfm_jax.flow.prediction import Prediction, check_parametrization
from dfm_jax.flow.sources import Source
from dfm_jax.flow.time import TimeLike, as_time, expand
from dfm_jax.flow.tree import Tree


@dataclasses.dataclass(frozen=True)
class Objective(Tree, abc.ABC):
    """A loss per position for a network that emits `parametrization` logits over the source's S states.

    suppress_mask: the mask gets probability 0. With leave-one-out logits it always does.
    bounds: the process whose -log p the mean loss bounds from above; None if the loss is no bound.
    charges_masks_alone: only masked positions carry a loss, whatever the parametrisation.

    Raises ValueError for a source or a parametrisation that the path does not support.
    """

    path: Any  # a `flow.Path`
    source: Source
    parametrization: str = "posterior"
    suppress_mask: bool = False

    leaves: ClassVar[tuple[str, ...]] = ("path", "source")
    bounds: ClassVar[str | None] = None
    charges_masks_alone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_parametrization(self.parametrization)
        self.path.check(self.source, self.parametrization)

    @property
    def prediction(self) -> Prediction:
        """What the network's logits mean."""
        return self.path.prediction(self.source, self.parametrization, self.suppress_mask)

    @property
    def leave_one_out(self) -> bool:
        """Whether the network's logits describe xhat."""
        return self.parametrization == "leave_one_out"

    @property
    def masked(self) -> bool:
        """Whether the source is the mask source."""
        return self.source.mask_id is not None

    @property
    def suppress(self) -> int | None:
        """The state that gets probability 0; None for no such state."""
        return self.prediction.suppress

    @abc.abstractmethod
    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        """The query to the vocabulary head for x_1, x_t (B, L) int32 and t (B,)."""

    @abc.abstractmethod
    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        """The loss of every position, (B, L) nats in the answer's dtype, from the answer to `query`."""

    def _gather(self, *ids: jax.Array) -> HeadQuery:
        return HeadQuery(jnp.stack(ids, axis=-1), suppress=self.suppress)

    def _schedule(self, t: TimeLike, like: jax.Array) -> tuple[jax.Array, ...]:
        """kappa, sigma, d kappa and lambda, broadcast and cast for the positions of `like` (B, L)."""
        time = expand(as_time(t), like.shape)
        out = self.path.scheduler(time)
        rate = self.path.scheduler.jump_rate(time)
        values = (out.alpha_t, out.sigma_t, out.d_alpha_t, rate)
        return tuple(jnp.broadcast_to(x.astype(like.dtype), like.shape) for x in values)

    def _reduced(self, answer: HeadAnswer) -> jax.Array:
        """The answer's reduction. Raises ValueError where it has none."""
        if answer.reduced is None:
            raise ValueError("answer.reduced = None: expected the reduction that this objective's query asks for")
        return answer.reduced


@dataclasses.dataclass(frozen=True)
class PosteriorCrossEntropy(Objective):
    """-log post(x_1) on any path; 0 where x_1 is carried over. It is no bound.

    corrupted_only: also 0 where x_t = x_1.
    """

    corrupted_only: bool = False

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        return self.prediction.shifted(self._gather(x_1), x_t, t)

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        loss = -answer.at_ids[..., 0]
        return jnp.where(x_t != x_1, loss, 0.0) if self.corrupted_only or self.prediction.carries_over else loss


CROSS_ENTROPIES = {"cross_entropy": False, "cross_entropy_corrupted": True}


def get_objective(
    name: str,
    *,
    path: Any,
    source: Source,
    parametrization: str = "posterior",
    suppress_mask: bool = False,
) -> Objective:
    """The objective of `path` that a config calls `name`. Raises ValueError for an unknown name."""
    return path.get_objective(name, source, parametrization, suppress_mask)


def times_rate(rate: jax.Array, change: jax.Array) -> jax.Array:
    """rate * change, elementwise and never NaN.

    At an infinite rate the result is 0 where change = 0, else infinite, and no gradient passes.
    """
    rate, change = jnp.broadcast_arrays(rate.astype(change.dtype), change)
    endless = jnp.isinf(rate)
    limit = jnp.where(change == 0, 0.0, jnp.copysign(jnp.inf, change))
    return jnp.where(endless, jax.lax.stop_gradient(limit), jnp.where(endless, 0.0, rate) * change)
