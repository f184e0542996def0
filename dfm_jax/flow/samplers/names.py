"""The samplers of the mixture path by name, as configs write them."""

import dataclasses
from typing import Any

from dfm_jax.flow.samplers.correctors import Corrector
from dfm_jax.flow.samplers.events import Events, FirstHitting, Thinning
from dfm_jax.flow.samplers.jumps import Euler, Exact, TwoStage
from dfm_jax.flow.samplers.step import Step
from dfm_jax.flow.samplers.stochastic import Ancestral, DivFreeEuler, Multiflow, Remask

STEPS: dict[str, Any] = {
    "exact": Exact,
    "maximal": Exact,  # the maximal coupling of C_t and C_s
    "euler": Euler,
    "div_free_euler": DivFreeEuler,
    "two_stage": TwoStage,
    "corrector": Corrector,
    "multiflow": Multiflow,
    "ancestral": Ancestral,
    "remask": Remask,
    "first_hitting": FirstHitting,
    "thinning": Thinning,
}


def get_step(name: str, **options: Any) -> Step | Events:
    """The sampler step of the mixture path called `name`.

    Steps: exact (or maximal), euler, div_free_euler, two_stage, corrector, multiflow, ancestral, remask. Chains without
    steps: first_hitting, thinning. Options: `div_free` of two_stage and div_free_euler; `iterations` and `strength` of
    corrector; `eta` of multiflow; `schedule` and `eta` of remask; `delta` of thinning. They may also follow the name,
    as in "two_stage:div_free=1" or "corrector:iterations=2,strength=0.3".

    Raises ValueError for an unknown name, and for an option that the step does not have.
    """
    name, _, written = name.partition(":")
    options = {**_written_options(written), **options}
    if name not in STEPS:
        raise ValueError(f"step = {name!r}: expected {', '.join(STEPS)}")
    defaults = {field.name: field.default for field in dataclasses.fields(STEPS[name]) if field.init}
    if not set(options) <= set(defaults):
        raise ValueError(f"step = {name!r} with options {sorted(options)}: expected options {list(defaults)}")
    for option, value in options.items():
        if isinstance(value, str) != isinstance(defaults[option], str):
            kind = "a word" if isinstance(defaults[option], str) else "a number"
            raise ValueError(f"step = {name!r} with option {option} = {value!r}: expected {kind}")
    return STEPS[name](**options)


def _written_options(text: str) -> dict[str, Any]:
    """ "a=1,b=0.5,c=word" as {"a": 1, "b": 0.5, "c": "word"}."""
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise ValueError(f"step option {part!r}: expected NAME=VALUE")
        options[key] = value
        for kind in (int, float):
            try:
                options[key] = kind(value)
                break
            except ValueError:
                continue
    return options
