"""Schedulers by name, as configs write them."""

import dataclasses

from dfm_jax.flow.schedulers.base import Scheduler
from dfm_jax.flow.schedulers.noise import GeometricScheduler, LogLinearScheduler
from dfm_jax.flow.schedulers.polynomial import (
    CondOTScheduler,
    CubicScheduler,
    OneMinusPowerScheduler,
    PolynomialConvexScheduler,
)
from dfm_jax.flow.schedulers.trigonometric import (
    CosineMD4Scheduler,
    KineticOptimalUniformScheduler,
    SineScheduler,
    SineSquaredScheduler,
)

SCHEDULERS: dict[str, type] = {
    "linear": CondOTScheduler,
    "polynomial": PolynomialConvexScheduler,
    "one_minus_power": OneMinusPowerScheduler,
    "cosine_md4": CosineMD4Scheduler,
    "sine": SineScheduler,
    "sine_squared": SineSquaredScheduler,
    "cubic": CubicScheduler,
    "log_linear": LogLinearScheduler,
    "geometric": GeometricScheduler,
    "kinetic_optimal_mask": SineSquaredScheduler,
    "kinetic_optimal_uniform": KineticOptimalUniformScheduler,
}

WITH_EXPONENT = {"polynomial": "n", "one_minus_power": "p"}

AMBIGUOUS = {
    "poly": "'polynomial' (kappa = t^n) or 'one_minus_power' (sigma = (1-t)^p, MD4's poly)",
    "cosine": "'cosine_md4' (kappa = 1 - cos(pi t/2)), 'sine' (sin(pi t/2), MDLM's cosine) or 'sine_squared'",
}


def get_scheduler(name: str, *, exponent: float = 1.0, vocab_size: int | None = None, **parameters: float) -> Scheduler:
    """The scheduler called `name` in a config.

    exponent: n of 'polynomial' and p of 'one_minus_power'; it must be 1 for all others. vocab_size: the number of
    tokens; only 'kinetic_optimal_uniform' needs it. parameters: the scheduler's own fields ('cubic': a, b;
    'log_linear': eps; 'geometric': smin, smax).

    Raises ValueError for an unknown name, an ambiguous one ('poly', 'cosine'), and a parameter it does not have.
    """
    for stem, choice in AMBIGUOUS.items():
        if name == stem or (name.startswith(stem) and name[len(stem) :].isdigit()):
            raise ValueError(f"scheduler = {name!r} is ambiguous: expected {choice}")
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler = {name!r}: expected {', '.join(SCHEDULERS)}")
    if name in WITH_EXPONENT:
        parameters[WITH_EXPONENT[name]] = exponent
    elif exponent != 1:
        raise ValueError(f"exponent = {exponent!r}: expected only 1 for scheduler={name!r}")
    if name == "kinetic_optimal_uniform":
        if vocab_size is None:
            raise ValueError("vocab_size = None: expected the number of tokens, for 'kinetic_optimal_uniform'")
        return KineticOptimalUniformScheduler(vocab_size)
    accepted = [field.name for field in dataclasses.fields(SCHEDULERS[name])]
    unknown = sorted(set(parameters) - set(accepted))
    if unknown:
        raise ValueError(
            f"{unknown[0]} = {parameters[unknown[0]]!r}: expected, with scheduler={name!r}, some of {accepted}"
        )
    return SCHEDULERS[name](**parameters)
