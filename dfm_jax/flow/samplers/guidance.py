"""Guidance by a prompt, for the mask source (mathematics.md E.5)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dfm_jax.flow.prediction import PathLike
from dfm_jax.flow.samplers.denoiser import Guide, Question
from dfm_jax.flow.samplers.moves import Around, State
from dfm_jax.flow.samplers.step import Row

MOST_GAMMA = 1e6  # logits times gamma are float32


@dataclasses.dataclass(frozen=True)
class Linear:
    """gamma = start at kappa = 0, end at kappa = 1, linear in kappa. Raises ValueError for a negative number."""

    start: float = 1.0
    end: float = 1.0

    def __post_init__(self):
        for name in ("start", "end"):
            check_gamma(name, getattr(self, name))

    def __call__(self, kappa: jax.Array) -> jax.Array:
        return self.start + (self.end - self.start) * kappa


Guidance = float | Callable[[jax.Array], jax.Array]


def get_guidance(text: str | Guidance) -> Guidance:
    """gamma as a config writes it: a number, or "linear:1,3", from 1 at kappa = 0 to 3 at kappa = 1.

    Raises ValueError for other words, for numbers below 0 or from MOST_GAMMA, and for functions that give such.
    """
    if callable(text):
        with jax.ensure_compile_time_eval():
            kappa = jnp.linspace(0.0, 1.0, 33)
            gamma = text(kappa)
        if isinstance(gamma, Tracer):  # of a program around this one
            return text
        gamma = np.asarray(gamma)
        if gamma.shape not in ((), kappa.shape):
            raise ValueError(f"guidance of shape {gamma.shape} at kappa {kappa.shape}: expected that of kappa")
        check_gamma("guidance", float(gamma.min() if np.isfinite(gamma).all() else np.nan))
        check_gamma("guidance", float(gamma.max()))
        return text
    kind, colon, rest = str(text).partition(":")
    numbers = rest.split(",") if colon else [kind]
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    if (kind == "linear", len(values)) not in ((True, 2), (False, 1)) or (colon and kind != "linear"):
        raise ValueError(f"guidance = {text!r}: expected a number of 0 or more, or linear:START,END")
    if colon:
        return Linear(*values)
    check_gamma("guidance", values[0])
    return values[0]


def check_gamma(name: str, gamma: float) -> None:
    """Raises ValueError unless 0 <= `gamma` < MOST_GAMMA."""
    if not 0 <= gamma < MOST_GAMMA:
        raise ValueError(f"{name} = {gamma}: expected a finite number of 0 or more, below {MOST_GAMMA:g}")


def check_guidance(guidance: Guidance, path: PathLike, source: Any) -> None:
    """Raises ValueError for a source or path in which a prompt cannot be taken away by masks."""
    if source.mask_id is None or not path.carries_over:
        raise ValueError(
            f"guidance = {guidance}: expected a mask source and a path that keeps revealed tokens, not "
            f"{type(source).__name__} on {type(path).__name__}"
        )


def check_prompt(guidance: Guidance, fixed: Any) -> None:
    """Raises ValueError where no position is fixed, as far as that is known before the program runs."""
    known = fixed is None or not isinstance(fixed, Tracer)
    if known and (fixed is None or not np.asarray(fixed).any()):
        raise ValueError(f"guidance = {guidance}: expected a prompt or gaps, positions that are fixed")


@dataclasses.dataclass(frozen=True, eq=False)
class GuidedMoves(Around):
    """The moves of `base`, whose questions are guided by the fixed positions. scheduler: that of the training."""

    guidance: Any
    scheduler: Any
    mask_id: int

    @property
    def always_asks(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.base.always_asks

    def ask(self, row: Row, state: State, keys: jax.Array) -> Question:
        question = self.base.ask(row, state, keys)
        without = jnp.where(state.fixed, jnp.int32(self.mask_id), question.x)
        gamma: Any = self.guidance
        if callable(gamma):
            gamma = gamma(self.scheduler(question.t).alpha_t)
        gamma = jnp.broadcast_to(jnp.asarray(gamma, jnp.float32), question.t.shape)
        return question._replace(guidance=Guide(without, gamma))
