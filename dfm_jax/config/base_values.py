"""What `configs/base.py` says in place of the published recipe, told apart from what a config file says itself.

`base` was the published recipe in version 0.1. A config file that names no text of its own, neither in the file nor
beside it, means that recipe still: what it leaves as base has it becomes what base said then. Its own values stay.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dfm_jax.config.checks import flatten
from dfm_jax.config.fields import TABLE, defaults

TEXT = "data.train"
# A run is measured on the part of its own text that it holds out, without a judge: it asks for nothing but the text.
ANY_TEXT: dict[str, Any] = {
    TEXT: TABLE[TEXT].default,
    "data.valid": "",
    "eval.corpora": ("data.valid",),
    "eval.judge": "",
    "eval.num_samples": 16,
    "eval.time_points": 128,
}


class _Group(ConfigDict):
    """A group of fields that knows which of them were given since it was made, and so does its copy."""

    def __init__(self, *values: Any, **options: Any):
        object.__setattr__(self, "_given", set())
        super().__init__(*values, **options)
        initial = values[0] if values else None
        object.__setattr__(self, "_given", set(initial.given()) if isinstance(initial, _Group) else set())

    def __setitem__(self, key: str, value: Any) -> None:
        self.given().add(key)
        super().__setitem__(key, value)

    def given(self) -> set[str]:
        return object.__getattribute__(self, "_given")

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Group":
        other = _Group(copy.deepcopy(self.to_dict(), memo))
        object.__setattr__(other, "_given", set(self.given()))
        return other

    def copy_and_resolve_references(self, visit_map: Any = None) -> "_Group":
        return self.__deepcopy__({})

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.to_dict(), self.given())


def _restored(values: dict[str, Any], given: set[str]) -> _Group:
    group = _Group(values)
    object.__setattr__(group, "_given", given)
    return group


@dataclasses.dataclass(frozen=True)
class Unsaid:
    """A value that base alone has given."""

    value: Any


def any_text() -> ConfigDict:
    """The published recipe with the values of ANY_TEXT; it knows which of those a config file then changes."""
    values = defaults().to_dict()
    for name, value in ANY_TEXT.items():
        group, _, field = name.partition(".")
        values[group][field] = value
    config = ConfigDict({name: part for name, part in values.items() if name not in ("data", "eval")})
    config.data, config.eval = _Group(values["data"]), _Group(values["eval"])
    return config


def values_of(config: ConfigDict) -> dict[str, Any]:
    """{"group.field": value} of a config file, for overrides and then `said`; "auto" of a placeholder."""
    values = flatten(config.to_dict())
    for name, field in TABLE.items():
        group, _, leaf = name.partition(".")
        # A placeholder of ml_collections is None with the type of the value that is to come.
        if field.auto and name in values and values[name] is None and config[group].get_type(leaf) is not type(None):
            values[name] = "auto"
    for name in ANY_TEXT:
        group, _, field = name.partition(".")
        held = config.get(group)
        if isinstance(held, _Group) and field not in held.given() and name in values:
            values[name] = Unsaid(values[name])
    return values


def said(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of `values_of` and of what was set beside the file."""
    published = isinstance(values.get(TEXT), Unsaid)
    return {
        name: (TABLE[name].default if published else value.value) if isinstance(value, Unsaid) else value
        for name, value in values.items()
    }
