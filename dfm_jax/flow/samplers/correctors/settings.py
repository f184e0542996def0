"""The correctors that a solver takes, as frozen settings: what they change, how often, and in which interval."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np
from jax.core import Tracer

from dfm_jax.flow.prediction import PathLike
from dfm_jax.flow.samplers.correctors.sites import Sites
from dfm_jax.flow.samplers.denoiser import Needs
from dfm_jax.flow.samplers.grid import check_count
from dfm_jax.flow.samplers.step import source_law


def carries(path: PathLike, source: Any) -> bool:
    """Whether every token but the mask is x_1: a mask source, and a path that carries over."""
    return source.mask_id is not None and path.carries_over


@dataclasses.dataclass(frozen=True)
class Correction:
    """A corrector acts after every step but the last, at the time the step arrived at, in `rounds` rounds.

    kappa_min, kappa_max: it acts only where kappa is in this interval. With kappa_max = 1 it also acts after the last
    step. Raises ValueError unless rounds >= 1 and 0 <= kappa_min <= kappa_max <= 1.
    """

    rounds: int = 1
    kappa_min: float | None = None
    kappa_max: float | None = None

    name: ClassVar[str] = ""

    def __post_init__(self):
        object.__setattr__(self, "rounds", check_count("rounds", self.rounds))
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"kappa_min, kappa_max = {low}, {high}: expected 0 <= kappa_min <= kappa_max <= 1")

    @property
    def interval(self) -> tuple[float, float]:
        """(kappa_min, kappa_max), where 1 stands for the whole."""
        return self.kappa_min or 0.0, 1.0 if self.kappa_max is None else self.kappa_max

    @property
    def at_the_end(self) -> bool:
        """Whether it acts at kappa = 1."""
        return self.kappa_max == 1

    def acts(self, kappa: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Whether it acts after steps that arrive at `kappa`; `last`: at t = 1. Arrays of one shape."""
        low, high = self.interval
        return (kappa >= low) & (kappa <= high) & (~last | self.at_the_end)

    def check(self, path: PathLike, source: Any, unmasks: bool) -> None:
        """Raises ValueError for a path or source that it does not have. unmasks: under the sampler `unmask`."""
        raise NotImplementedError

    def needs(self, path: PathLike, source: Any, unmasks: bool) -> Needs:
        """What a round needs from the model."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PosteriorCorrection(Sites, Correction):
    """A corrector that redraws a few positions from the posterior; see `sites.Sites` for which."""

    def __post_init__(self):
        Correction.__post_init__(self)
        Sites.__post_init__(self)

    def check(self, path: PathLike, source: Any, unmasks: bool) -> None:
        carried = carries(path, source)
        if not hasattr(path, "sample"):
            raise ValueError(f"corrector = {self.name!r}: expected a path with `sample`, not {type(path).__name__}")
        if self.at_the_end and not carried:
            raise ValueError(f"kappa_max = {self.kappa_max}: expected below 1 unless revealed tokens are kept")
        if self.informed is not None and not carried and not path.jumps_alike:
            raise ValueError(f"informed = {self.informed}: expected the mixture path, not {type(path).__name__}")


@dataclasses.dataclass(frozen=True)
class Resample(PosteriorCorrection):
    """x_1^i ~ posterior given x_t, then x_t^i ~ C_t(. | x_1^i): invariant at one position a round, on every path.

    With the mask source a revealed token is masked with probability sigma, a masked one is revealed with kappa.
    """

    name: ClassVar[str] = "resample"

    def check(self, path: PathLike, source: Any, unmasks: bool) -> None:
        super().check(path, source, unmasks)
        if self.informed is not None and not unmasks and carries(path, source):
            raise ValueError("corrector = 'resample' with informed: expected corrector = 'gibbs' with a mask source")

    def needs(self, path: PathLike, source: Any, unmasks: bool) -> Needs:
        if self.informed is None:
            return Needs.DRAWS
        return Needs.DRAWS | (Needs.LOG_PROB if unmasks else Needs.AT_GIVEN)


@dataclasses.dataclass(frozen=True)
class Gibbs(PosteriorCorrection):
    """x_t^i ~ p_t(. | the other positions): invariant at one position a round.

    With the mask source the chosen positions are masked first, and drawn from one evaluation: kappa posterior + sigma
    mask. With another source v ~ xhat, the posterior without what x_t^i itself says, then x_t^i ~ C_t(. | v).

    informed: with the mask source the revealed tokens that were least probable when they were revealed; they are masked
    and drawn again, and stay revealed. With another source, where kappa xhat(z) + sigma p(z) is least; the score is
    taken from the evaluation that redraws. Not invariant.
    """

    name: ClassVar[str] = "gibbs"

    def check(self, path: PathLike, source: Any, unmasks: bool) -> None:
        super().check(path, source, unmasks)
        if not unmasks and not path.noises_alike:
            raise ValueError(f"corrector = 'gibbs': expected a path with one schedule for every token and x_1, not "
                             f"{type(path).__name__}")  # fmt: skip
        # A law that is an argument of a program is known outside it alone.
        known = not isinstance(getattr(source, "law", None), Tracer | jax.ShapeDtypeStruct)
        if source.mask_id is None and known and not (source_law(source) > 0).all():
            raise ValueError("corrector = 'gibbs': expected a source with p > 0 at every token")

    def needs(self, path: PathLike, source: Any, unmasks: bool) -> Needs:
        carried = carries(path, source)
        needs = Needs.DRAWS if carried else Needs.DRAWS | Needs.LEAVE_ONE_OUT
        if self.informed is not None:
            needs |= Needs.LOG_PROB if carried else Needs.AT_GIVEN
        return needs


@dataclasses.dataclass(frozen=True)
class ForwardBackward(Correction):
    """Renoise from s back to v, then one exact step from v to s; kappa_v = kappa_s - strength (kappa_s - kappa_t).

    t is where the step to s began. On the mixture path it keeps the law at s; its error is that of a step from v to s.
    Raises ValueError unless 0 < strength <= 1.
    """

    strength: float = 0.5
    name: ClassVar[str] = "forward_backward"

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength = {self.strength}: expected 0 < strength <= 1")
        if self.at_the_end:
            raise ValueError(f"kappa_max = {self.kappa_max}: expected below 1")

    def check(self, path: PathLike, source: Any, unmasks: bool) -> None:
        if unmasks:
            raise ValueError("corrector = 'forward_backward': expected gibbs or resample with step = 'unmask'")
        if not path.jumps_alike:
            raise ValueError("corrector = 'forward_backward': expected the mixture path only")

    def needs(self, path: PathLike, source: Any, unmasks: bool) -> Needs:
        return Needs.DRAWS


CORRECTORS: dict[str, type[Correction]] = {
    "gibbs": Gibbs,
    "resample": Resample,
    "forward_backward": ForwardBackward,
}
