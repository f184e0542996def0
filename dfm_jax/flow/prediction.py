"""What a network's logits mean: which law they describe, and how they become the posterior p(x_1 | x_t).

Posterior logits describe p(x_1^i | x_t). Leave-one-out logits describe xhat = p(x_1^i | x_t without x_t^i). The two
differ only at the index x_t^i, by an amount that depends on the path (mathematics.md D.3). A path makes a `Prediction`
with `path.prediction(source, parametrization)`; losses, samplers and evaluation use it.
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

    parametrization: 'posterior' or 'leave_one_out'.
    suppress: the state whose probability is 0 whatever its logit; None for no such state.
    carries_all_but: the mask, if every other token of x_t is carried over. A token that is carried over is x_1 itself,
    whatever the logits say. None if no token is carried over.
    shift: (x_t, t) -> the amount to add to the logit at x_t to get the posterior, nats, of x_t's shape. None if nothing
    is added.

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
        """Whether the logits describe xhat."""
        return self.parametrization == "leave_one_out"

    @property
    def carries_over(self) -> bool:
        """Whether some tokens of x_t are carried over, that is, are x_1 whatever the logits say."""
        return self.carries_all_but is not None

    def shifted(self, query: HeadQuery, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        """`query` with the shift to the posterior at x_t (B, L) and t (B,). The caller handles what is carried over."""
        if self.shift is None:
            return query
        return query._replace(shift=self.shift(x_t, t), shift_ids=x_t)

    def carry_over(self, x_1: jax.Array, x_t: jax.Array) -> jax.Array:
        """The drawn x_1, replaced by x_t where x_t is carried over. Both have one shape."""
        return x_1 if self.carries_all_but is None else jnp.where(x_t == self.carries_all_but, x_1, x_t)

    def posterior_logits(self, logits: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        """Posterior logits (B, L, S) from the network's `logits` (B, L, S) at x_t (B, L) and t (B,).

        A position that is carried over gets the logits of delta_z: 0 at z = x_t and -inf elsewhere.

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
    """What losses, predictions and samplers use of a path. `flow.Path`, the base class of paths, documents each."""

    carries_over: ClassVar[bool]
    jumps_alike: ClassVar[bool]
    noises_alike: ClassVar[bool]

    @property
    def scheduler(self) -> Scheduler:
        """The path's clock."""
        ...

    def check(self, source: Source, parametrization: str) -> None:
        """Raises ValueError for a source or a parametrisation that the path does not support."""
        ...

    def prediction(self, source: Source, parametrization: str = ..., suppress_mask: bool = ...) -> Prediction:
        """What a network's logits mean on this path."""
        ...

    def own_source(self) -> Source | None:
        """The source that the path starts from; None if any will do."""
        ...

    def loo_logit_shift(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
        """The posterior logit less the leave-one-out logit at x_t, nats, of x_t's shape."""
        ...

    def get_objective(self, name: str, source: Source, parametrization: str, suppress_mask: bool) -> Any:
        """The loss called `name`. Raises ValueError for an unknown one."""
        ...

    def get_step(self, name: str) -> Any:
        """The sampler step called `name`. Raises ValueError for an unknown one."""
        ...


def check_parametrization(name: str) -> None:
    """Raises ValueError unless `name` is one of PARAMETRIZATIONS."""
    if name not in PARAMETRIZATIONS:
        raise ValueError(f"parametrization = {name!r}: expected {', '.join(PARAMETRIZATIONS)}")
