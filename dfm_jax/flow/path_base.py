"""What a path other than the mixture answers for itself: its losses, its samplers, its evidence (mathematics.md C.3-5).

Such a path runs on a base clock, its `scheduler`: it is a function of kappa and sigma alone, so that its bounds are
integrals over kappa and depend on no schedule, as those of the mixture path.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from dfm_jax.flow.head import HeadQuery
from dfm_jax.flow.objectives import Objective
from dfm_jax.flow.paths import PathSample
from dfm_jax.flow.scheduler_base import Scheduler
from dfm_jax.flow.sources import Source
from dfm_jax.flow.time import TimeLike, as_time, expand
from dfm_jax.flow.velocities import Velocity


@dataclasses.dataclass(frozen=True)
class GeneralPath(abc.ABC):
    """A conditional path C_t(x | x_1) that a clock kappa_t drives, independently at each position.

    `carries_over`: with the mask source, a token that is not the mask is x_1. `bound_names`: the objectives that
    bound a likelihood, the first one that of the path's own velocity.
    """

    scheduler: Scheduler

    carries_over: ClassVar[bool] = False
    bound_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.scheduler, Scheduler):
            raise ValueError(f"scheduler={self.scheduler!r}: accepted a convex Scheduler (alpha_t + sigma_t = 1)")

    @abc.abstractmethod
    def check(self, source: Source, parametrization: str) -> None:
        """Raises ValueError for a source or a parametrisation that the path does not have."""

    @abc.abstractmethod
    def sample(self, key: jax.Array, x_0: jax.Array, x_1: jax.Array, t: TimeLike) -> PathSample:
        """x_t (B, L) of x_0, x_1 (B, L) int at t (B,); `key` one key, or (B,) keys, one per row."""

    def own_source(self) -> Source:
        """The law of x_0 that the path starts from. Raises ValueError for a path that does not say."""
        raise ValueError(f"path={type(self).__name__}: accepted a path with own_source()")

    def own_velocity(self) -> Velocity:
        """The velocity that the path's `generalized_kl` bounds. Raises ValueError for a path that does not say."""
        raise ValueError(f"path={type(self).__name__}: accepted a path with own_velocity()")

    @abc.abstractmethod
    def log_evidence(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
        """log1p(rho): what the logit at x_t gains between the leave-one-out and the posterior law; of x_t's shape."""

    @abc.abstractmethod
    def get_objective(self, name: str, source: Source, parametrization: str, suppress_mask: bool) -> Objective:
        """The loss called `name`. Raises ValueError for one that the path does not have."""

    @abc.abstractmethod
    def get_step(self, name: str) -> Any:
        """The step kernel called `name`. Raises ValueError for one that the path does not have."""

    def on(self, scheduler: Scheduler) -> Self:
        """The same path on another clock."""
        return dataclasses.replace(self, scheduler=scheduler)

    def posterior_to_velocity(self, logits: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        """u_t(x, z) of `own_velocity`, z = x_t, of shape (B, L, S), per unit of t; rows sum to 0.

        `logits` (B, L, S) of the posterior. Raises ValueError for another last axis.
        """
        return self.own_velocity()(logits, x_t, t, self, self.own_source())


@dataclasses.dataclass(frozen=True)
class PathObjective(Objective):
    """A loss of a `GeneralPath`, from posterior log-probabilities: leave-one-out logits gain the evidence at x_t."""

    path: GeneralPath

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path.check(self.source, self.parametrization)

    def posterior_of(self, x_t: jax.Array, t: TimeLike, *ids: jax.Array) -> HeadQuery:
        """log post at `ids`, each (B, L)."""
        query = self._gather(*ids)
        carried = self.masked and self.path.carries_over
        if not self.leave_one_out or carried:
            return query
        return query._replace(shift=self.path.log_evidence(x_t, t, self.source), shift_ids=x_t)


@dataclasses.dataclass(frozen=True)
class PathCrossEntropy(PathObjective):
    """-log post(x_1), 0 where a mask path has revealed x_1; with `corrupted_only`, 0 where x_t = x_1. No bound."""

    corrupted_only: bool = False

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        return self.posterior_of(x_t, t, x_1)

    def __call__(self, answer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        loss = -answer.at_ids[..., 0]
        carried = self.masked and self.path.carries_over and self.leave_one_out
        return jnp.where(x_t != x_1, loss, 0.0) if self.corrupted_only or carried else loss


CROSS_ENTROPIES = {"cross_entropy": False, "cross_entropy_corrupted": True}


def find_objective(
    path: GeneralPath,
    losses: Mapping[str, type[PathObjective]],
    name: str,
    source: Source,
    parametrization: str,
    suppress_mask: bool,
) -> Objective:
    """One of `losses` or a cross-entropy, by name. Raises ValueError for anything else."""
    if name in CROSS_ENTROPIES:
        return PathCrossEntropy(path, source, parametrization, suppress_mask, CROSS_ENTROPIES[name])
    if name not in losses:
        raise ValueError(f"loss={name!r} on {type(path).__name__}: accepted {', '.join([*CROSS_ENTROPIES, *losses])}")
    return losses[name](path, source, parametrization, suppress_mask)


def find_step(path: GeneralPath, steps: dict[str, Any], name: str) -> Any:
    """One of `steps` (name -> class that takes the path), by name. Raises ValueError for anything else."""
    if name not in steps:
        raise ValueError(f"step={name!r} on {type(path).__name__}: accepted {', '.join(steps)}")
    return steps[name](path)


def clock(path: GeneralPath, t: TimeLike, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """kappa, sigma and d kappa / dt of the path's clock, with axes that broadcast against `shape`."""
    out = path.scheduler(expand(as_time(t), shape))
    return out.alpha_t, out.sigma_t, out.d_alpha_t
