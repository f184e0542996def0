"""The samplers of the mixture path by name, as configs write them."""

import dataclasses
from typing import Any

from dfm_jax.flow.samplers.correctors import Corrector
from dfm_jax.flow.samplers.correctors.settings import CORRECTORS, Correction
from dfm_jax.flow.samplers.events import Events, FirstHitting, Thinning
from dfm_jax.flow.samplers.jumps import Euler, Exact, TwoStage
from dfm_jax.flow.samplers.step import Step
from dfm_jax.flow.samplers.stochastic import Ancestral, DivFreeEuler, Multiflow, Psi, Remask
from dfm_jax.flow.samplers.unmasking.unmask import Unmask

STEPS: dict[str, Any] = {
    "exact": Exact,
    "maximal": Exact,  # the maximal coupling of C_t and C_s
    "euler": Euler,
    "div_free_euler": DivFreeEuler,
    "two_stage": TwoStage,
    "corrector": Corrector,
    "multiflow": Multiflow,
    "ancestral": Ancestral,
    "psi": Psi,
    "remask": Remask,
    "first_hitting": FirstHitting,
    "thinning": Thinning,
    "unmask": Unmask,
}
# Of these, the samplers of every path that supports them; a path's own table has the rest.
OF_ANY_PATH = ("unmask",)


def get_step(name: str, **options: Any) -> Step | Events | Unmask:
    """The sampler step of the mixture path called `name`.

    Steps: exact (or maximal), euler, div_free_euler, two_stage, corrector, multiflow, ancestral, psi, remask. Chains
    without steps: first_hitting, thinning. Adaptive: unmask. Options: `div_free` of two_stage and div_free_euler;
    `iterations` and `strength` of corrector; `eta` of multiflow; `mode` and `eta` of psi; `schedule` and `eta` of
    remask; `delta` of thinning; `order`, `count`, `bound`, `noise` and `blocks` of unmask. They may also follow the
    name, as in "two_stage:div_free=1" or "unmask:order=entropy,bound=0.6".

    Raises ValueError for an unknown name, and for an option that the step does not have.
    """
    return _made("step", STEPS, name, options)


def get_corrector(name: str, **options: Any) -> Correction:
    """The corrector called `name`, for `flow.Solver(corrector=...)`: 'gibbs', 'resample' or 'forward_backward'.

    Options of all: `rounds`, `kappa_min`, `kappa_max`. Of gibbs and resample: one of `sites` (1 unless given), `rate`
    and `informed`, with `noise` for informed. Of forward_backward: `strength`. They may also follow the name, as in
    "gibbs:sites=1,rounds=3" or "resample:rate=0.3".

    Raises ValueError for an unknown name, and for an option that the corrector does not have.
    """
    return _made("corrector", CORRECTORS, name, options)


def _made(kind: str, table: dict[str, Any], name: str, options: dict[str, Any]) -> Any:
    """What `name` with its written and given options stands for in `table`."""
    name, _, written = name.partition(":")
    options = {**_written_options(kind, written), **options}
    if name not in table:
        raise ValueError(f"{kind} = {name!r}: expected {', '.join(table)}")
    defaults = {field.name: field.default for field in dataclasses.fields(table[name]) if field.init}
    if not set(options) <= set(defaults):
        raise ValueError(f"{kind} = {name!r} with options {sorted(options)}: expected options {list(defaults)}")
    for option, value in options.items():
        if isinstance(value, str) != isinstance(defaults[option], str):
            accepted = "a word" if isinstance(defaults[option], str) else "a number"
            raise ValueError(f"{kind} = {name!r} with option {option} = {value!r}: expected {accepted}")
    return table[name](**options)


def _written_options(kind: str, text: str) -> dict[str, Any]:
    """ "a=1,b=0.5,c=word" as {"a": 1, "b": 0.5, "c": "word"}."""
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise ValueError(f"{kind} option {part!r}: expected NAME=VALUE")
        if key in options:
            raise ValueError(f"{kind} option {part!r}: expected {key} once")
        options[key] = value
        for number in (int, float):
            try:
                options[key] = number(value)
                break
            except ValueError:
                continue
    return options
