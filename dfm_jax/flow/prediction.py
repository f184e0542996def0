"""What a network's logits mean, as data: of which law they are, and what turns them into the posterior p(x_1 | x_t).

A path makes one (`path.prediction(source, parametrization)`); losses, samplers and evaluation ask it. Posterior logits
are those of p(x_1^i | x_t). Leave-one-out logits are those of xhat = p(x_1^i | x_t without x_t^i): they differ from the
posterior's at the one index x_t^i, by an amount that the path knows (mathematics.md D.3).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from dfm_jax.flow.head import HeadQuery
from dfm_jax.flow.schedulers.base import Scheduler
from dfm_jax.flow.sources import Source
from dfm_jax.flow.time import TimeLike, floating
from dfm_jax.flow.tokens import at_tokens, check_tokens

PARAMETRIZATIONS = ("posterior", "leave_one_out")
Shift = Callable[[jax.Array, TimeLike], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The meaning of logits over S states.

    parametrization: 'posterior' or 'leave_one_out'. suppress: the state that has probability 0 whatever its logit, if
    any. carries_all_but: where this is a state, any other token of x_t is x_1 itself whatever the logits say (the mask:
    a token that is shown is carried over); None where nothing is. shift: (x_t, t) -> what the logit at x_t gains on the
    way to the posterior, nats, of x_t's shape; None where the logits are the posterior's but for what is carried over.
    Raises ValueError for another parametrization.
    """

    parametrization: str = "posterior"
    suppress: int | None = None
    carries_all_but: int | None = None
    shift: Shift | None = None

    def __post_init__(self) -> None:
        check_parametrization(self.parametrization)

    @property
    def leave_one_out(self) -> bool:
        """Whether the logits are those of xhat."""
        return self.parametrization == "leave_one_out"

    @property
    def carries_over(self) -> bool:
        """Whether some tokens of x_t are x_1 whatever the logits say."""
        return self.carries_all_but is not None

    def shifted(self, query: HeadQuery, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        """`query` asked of the posterior law; what is carried over is left to the caller."""
        if self.shift is None:
            return query
        return query._replace(shift=self.shift(x_t, t), shift_ids=x_t)

    def carry_over(self, x_1: jax.Array, x_t: jax.Array) -> jax.Array:
        """x_1 as drawn from the shifted logits, x_t itself where that is carried over; both of one shape."""
        return x_1 if self.carries_all_but is None else jnp.where(x_t == self.carries_all_but, x_1, x_t)

    def posterior_logits(self, logits: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        """Posterior logits (B, L, S) from the network's `logits` (B, L, S) at x_t (B, L); delta_z where carried over.

        Raises ValueError for logits of another shape.
        """
        check_tokens(logits, x_t)
        logits, here = floating(logits), at_tokens(x_t, logits.shape[-1])
        if self.suppress is not None:
            logits = logits.at[..., self.suppress].set(-jnp.inf)
        if self.carries_all_but is not None:
            return jnp.where((x_t != self.carries_all_but)[..., None], jnp.where(here, 0.0, -jnp.inf), logits)
        if self.shift is None:
            return logits
        return logits + jnp.where(here, self.shift(x_t, t).astype(logits.dtype)[..., None], 0.0)


class PathLike(Protocol):
    """What losses, predictions and samplers ask of a path; `flow.Path` is the class of them."""

    carries_over: ClassVar[bool]
    jumps_alike: ClassVar[bool]

    @property
    def scheduler(self) -> Scheduler: ...
    def check(self, source: Source, parametrization: str) -> None: ...
    def prediction(self, source: Source, parametrization: str = ..., suppress_mask: bool = ...) -> Prediction: ...
    def own_source(self) -> Source | None: ...
    def loo_logit_shift(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array: ...
    def get_objective(self, name: str, source: Source, parametrization: str, suppress_mask: bool) -> Any: ...
    def get_step(self, name: str) -> Any: ...


def check_parametrization(name: str) -> None:
    """Raises ValueError for anything but PARAMETRIZATIONS."""
    if name not in PARAMETRIZATIONS:
        raise ValueError(f"parametrization={name!r}: accepted {', '.join(PARAMETRIZATIONS)}")
