"""The base class of paths (mathematics.md C).

A new path defines four things: how to sample x_t, how x_t shifts the posterior, its losses, and its sampler steps. It
is a subclass of `Path`, in a file or folder beside this one. Every path runs on a clock, its `scheduler`, and depends
on t only through kappa and sigma. Its bounds are then integrals over kappa, the same for every schedule.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax

from dfm_jax.flow.losses.objective import CROSS_ENTROPIES, Objective, PosteriorCrossEntropy
from dfm_jax.flow.paths.velocity import Velocity
from dfm_jax.flow.prediction import Prediction
from dfm_jax.flow.samplers.names import OF_ANY_PATH, get_step
from dfm_jax.flow.schedulers.base import Scheduler
from dfm_jax.flow.sources import Source
from dfm_jax.flow.time import TimeLike, as_time, expand
from dfm_jax.flow.tree import Tree, take_old_names


class PathSample(NamedTuple):
    """x_0, x_1, x_t int32 of one shape, and t as the caller gave it."""

    x_0: jax.Array
    x_1: jax.Array
    x_t: jax.Array
    t: TimeLike


@dataclasses.dataclass(frozen=True)
class Path(Tree, abc.ABC):
    """A conditional path C_t(x | x_1) that a clock kappa_t drives, independently at each position.

    carries_over: with the mask source, a token of x_t that is not the mask is x_1.
    jumps_alike: every token jumps at the clock's rate, and only to x_1. Samplers without steps need this.
    noises_alike: C_t(x | x_1) is the same for every x_1 other than x. The corrector 'gibbs' needs this.
    counts_masks: with the mask source, the masks of x_t are a uniform subset, and its size stands for the time. The
    count form needs this.
    learns: the arrays of the path are parameters of a model.
    bound_names: the objectives that bound a likelihood. The first one belongs to the path's own velocity.

    A subclass names its array attributes in `leaves` (`flow.Tree`). Raises ValueError for a scheduler that is none.
    """

    scheduler: Scheduler

    carries_over: ClassVar[bool] = False
    jumps_alike: ClassVar[bool] = False
    noises_alike: ClassVar[bool] = False
    counts_masks: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    bound_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        take_old_names(cls, {"log_evidence": "loo_logit_shift"})  # as version 0.1 called it

    def __post_init__(self) -> None:
        if not isinstance(self.scheduler, Scheduler):
            raise ValueError(f"scheduler = {self.scheduler!r}: expected a convex Scheduler (alpha_t + sigma_t = 1)")

    @abc.abstractmethod
    def check(self, source: Source, parametrization: str) -> None:
        """Raises ValueError for a source or a parametrisation that the path does not support."""

    @abc.abstractmethod
    def sample(self, key: jax.Array, x_0: jax.Array, x_1: jax.Array, t: TimeLike) -> PathSample:
        """Draws x_t (B, L) from x_0, x_1 (B, L) int at t (B,). `key` is one key, or (B,) keys, one per row."""

    @abc.abstractmethod
    def get_objective(self, name: str, source: Source, parametrization: str, suppress_mask: bool) -> Objective:
        """The loss called `name`. Raises ValueError for an unknown one."""

    @abc.abstractmethod
    def get_step(self, name: str) -> Any:
        """The sampler step called `name`. Raises ValueError for an unknown one."""

    def loo_logit_shift(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
        """The posterior logit less the leave-one-out logit at x_t, nats, of x_t's shape.

        It is log(C_t(x_t | x_1 = x_t) / C_t(x_t | another x_1)). t has the leading axes of x_t. Raises ValueError for a
        path on which this depends on the other x_1.
        """
        raise ValueError("parametrization = 'leave_one_out': expected posterior, for all of C depends on x_1")

    def log_evidence(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
        """`loo_logit_shift`, as version 0.1 called it."""
        return self.loo_logit_shift(x_t, t, source)

    def prediction(self, source: Source, parametrization: str = "posterior", suppress_mask: bool = False) -> Prediction:
        """What `parametrization` logits of a network mean on this path from `source`.

        suppress_mask: the mask gets probability 0. With leave-one-out logits it always does.
        """
        leave_one_out = parametrization == "leave_one_out"
        carried = source.mask_id if leave_one_out and self.carries_over else None
        return Prediction(
            parametrization,
            suppress=source.mask_id if leave_one_out or suppress_mask else None,
            carries_all_but=carried,
            shift=(lambda x_t, t: self.loo_logit_shift(x_t, t, source)) if leave_one_out and carried is None else None,
        )

    def bounds_for(self, source: Source) -> tuple[str, ...]:
        """The names of the bounds that evaluation reports for a source, the reference's first.

        They share x_t and one pass of the trunk.
        """
        return self.bound_names

    def own_source(self) -> Source | None:
        """The source that the path starts from; None if any will do. Raises ValueError if that is not defined."""
        raise ValueError(f"path = {type(self).__name__}: expected a path with own_source()")

    def own_velocity(self) -> Velocity:
        """The velocity whose process `generalized_kl` bounds. Raises ValueError for a path that does not define it."""
        raise ValueError(f"path = {type(self).__name__}: expected a path with own_velocity()")

    def on(self, scheduler: Scheduler) -> Self:
        """The same path on another clock."""
        return dataclasses.replace(self, scheduler=scheduler)

    def posterior_to_velocity(self, logits: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        """u_t(x, z) of `own_velocity`, z = x_t, of shape (B, L, S), per unit of t; rows sum to 0.

        logits: (B, L, S), of the posterior. Raises ValueError for another last axis.
        """
        source = self.own_source()
        if source is None:
            raise ValueError(f"path = {type(self).__name__}: expected a path with own_source()")
        return self.own_velocity()(logits, x_t, t, self, source)


GeneralPath = Path  # the name in version 0.1, where it did not cover the mixture


def find_objective(
    path: Path,
    losses: Mapping[str, type[Objective]],
    name: str,
    source: Source,
    parametrization: str,
    suppress_mask: bool,
) -> Objective:
    """The cross-entropy or the one of `losses` called `name`. Raises ValueError for an unknown name."""
    if name in CROSS_ENTROPIES:
        return PosteriorCrossEntropy(path, source, parametrization, suppress_mask, CROSS_ENTROPIES[name])
    if name not in losses:
        raise ValueError(f"loss = {name!r} on {type(path).__name__}: expected {', '.join([*CROSS_ENTROPIES, *losses])}")
    return losses[name](path, source, parametrization, suppress_mask)


def find_step(path: Path, steps: Mapping[str, Any], name: str) -> Any:
    """The step called `name`, made from `steps` (name -> class that takes the path), or a sampler of every path.

    Raises ValueError for an unknown name.
    """
    if name.partition(":")[0] in OF_ANY_PATH:
        return get_step(name)
    if name not in steps:
        raise ValueError(f"step = {name!r} on {type(path).__name__}: expected {', '.join([*steps, *OF_ANY_PATH])}")
    return steps[name](path)


def clock(path: Any, t: TimeLike, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """kappa, sigma and d kappa / dt of the path's clock at t, with axes that broadcast against `shape`."""
    out = path.scheduler(expand(as_time(t), shape))
    return out.alpha_t, out.sigma_t, out.d_alpha_t
