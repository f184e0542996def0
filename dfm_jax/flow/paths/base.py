"""What a path is: the law of x_t, what its networks' logits mean, its losses and its sampler steps (mathematics.md C).

A path runs on a base clock, its `scheduler`: it is a function of kappa and sigma alone, so that its bounds are
integrals over kappa and depend on no schedule. A new path is a subclass of `Path`, in a file or folder beside this one.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax

from dfm_jax.flow.losses.objective import CROSS_ENTROPIES, Objective, PosteriorCrossEntropy
from dfm_jax.flow.paths.velocity import Velocity
from dfm_jax.flow.prediction import Prediction
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

    `carries_over`: with the mask source, a token that is not the mask is x_1. `bound_names`: the objectives that bound
    a likelihood, the first one that of the path's own velocity. `jumps_alike`: every token jumps to x_1 at the clock's
    rate and nowhere else, which a sampler without steps needs. `counts_masks`: with the mask source the masks of x_t
    are a uniform subset whose size stands for the time, which the count form needs. `learns`: its leaves
    are parameters of a model. An attribute that is an array is
    named in `leaves` (`flow.Tree`).
    """

    scheduler: Scheduler

    carries_over: ClassVar[bool] = False
    jumps_alike: ClassVar[bool] = False
    counts_masks: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    bound_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        take_old_names(cls, {"log_evidence": "loo_logit_shift"})  # as version 0.1 called it

    def __post_init__(self) -> None:
        if not isinstance(self.scheduler, Scheduler):
            raise ValueError(f"scheduler={self.scheduler!r}: accepted a convex Scheduler (alpha_t + sigma_t = 1)")

    @abc.abstractmethod
    def check(self, source: Source, parametrization: str) -> None:
        """Raises ValueError for a source or a parametrisation that the path does not have."""

    @abc.abstractmethod
    def sample(self, key: jax.Array, x_0: jax.Array, x_1: jax.Array, t: TimeLike) -> PathSample:
        """x_t (B, L) of x_0, x_1 (B, L) int at t (B,); `key` one key, or (B,) keys, one per row."""

    @abc.abstractmethod
    def get_objective(self, name: str, source: Source, parametrization: str, suppress_mask: bool) -> Objective:
        """The loss called `name`. Raises ValueError for one that the path does not have."""

    @abc.abstractmethod
    def get_step(self, name: str) -> Any:
        """The step kernel called `name`. Raises ValueError for one that the path does not have."""

    def loo_logit_shift(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
        """What the logit at x_t gains between the leave-one-out and the posterior law, nats, of x_t's shape.

        log(C_t(x_t | x_1 = x_t) / C_t(x_t | another x_1)), t (B,) or of x_t's leading axes. Raises ValueError for a
        path of which this is no one number.
        """
        raise ValueError("parametrization='leave_one_out': accepted posterior, for all of C depends on x_1")

    def log_evidence(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
        """`loo_logit_shift`, as version 0.1 called it."""
        return self.loo_logit_shift(x_t, t, source)

    def prediction(self, source: Source, parametrization: str = "posterior", suppress_mask: bool = False) -> Prediction:
        """What `parametrization` logits of a network mean on this path from `source`.

        `suppress_mask`: the mask has probability 0; in leave-one-out logits it always has.
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
        """The bounds that are reported for a source, the reference's first; they share x_t and one trunk pass."""
        return self.bound_names

    def own_source(self) -> Source | None:
        """The law of x_0 that the path starts from, None where any will do. Raises ValueError where it does not say."""
        raise ValueError(f"path={type(self).__name__}: accepted a path with own_source()")

    def own_velocity(self) -> Velocity:
        """The velocity that the path's `generalized_kl` bounds. Raises ValueError for a path that does not say."""
        raise ValueError(f"path={type(self).__name__}: accepted a path with own_velocity()")

    def on(self, scheduler: Scheduler) -> Self:
        """The same path on another clock."""
        return dataclasses.replace(self, scheduler=scheduler)

    def posterior_to_velocity(self, logits: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        """u_t(x, z) of `own_velocity`, z = x_t, of shape (B, L, S), per unit of t; rows sum to 0.

        `logits` (B, L, S) of the posterior. Raises ValueError for another last axis.
        """
        source = self.own_source()
        if source is None:
            raise ValueError(f"path={type(self).__name__}: accepted a path with own_source()")
        return self.own_velocity()(logits, x_t, t, self, source)


GeneralPath = Path  # its name in version 0.1, when the mixture was none


def find_objective(
    path: Path,
    losses: Mapping[str, type[Objective]],
    name: str,
    source: Source,
    parametrization: str,
    suppress_mask: bool,
) -> Objective:
    """One of `losses` or a cross-entropy, by name. Raises ValueError for anything else."""
    if name in CROSS_ENTROPIES:
        return PosteriorCrossEntropy(path, source, parametrization, suppress_mask, CROSS_ENTROPIES[name])
    if name not in losses:
        raise ValueError(f"loss={name!r} on {type(path).__name__}: accepted {', '.join([*CROSS_ENTROPIES, *losses])}")
    return losses[name](path, source, parametrization, suppress_mask)


def find_step(path: Path, steps: Mapping[str, Any], name: str) -> Any:
    """One of `steps` (name -> class that takes the path), by name. Raises ValueError for anything else."""
    if name not in steps:
        raise ValueError(f"step={name!r} on {type(path).__name__}: accepted {', '.join(steps)}")
    return steps[name](path)


def clock(path: Any, t: TimeLike, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """kappa, sigma and d kappa / dt of the path's clock, with axes that broadcast against `shape`."""
    out = path.scheduler(expand(as_time(t), shape))
    return out.alpha_t, out.sigma_t, out.d_alpha_t
