"""From values by name to a frozen config: old names answered, every value of its type and accepted."""

import os.path
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from dfm_jax.config import hints, retired
from dfm_jax.config.accepted import type_fault, value_fault
from dfm_jax.config.fields import GROUPS, TABLE, Config
from dfm_jax.config.statement import Field
from dfm_jax.runtime.errors import UsageError

AUTO = "training.auto"
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 200
_short.maxlevel = 3


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with other values of some fields, {"group.field": value}, checked as by `build`.

    A field that was left to the text and the device is no longer once it has a value.
    """
    values = {**config.flat(), **changes}
    if AUTO not in changes:
        left = (name for name in config.training.auto if name not in changes)
        values |= dict.fromkeys(left, "auto")
        values[AUTO] = ()
    return build(values)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"group.field": value}, unchecked; what is no group keeps its own name."""
    values = {}
    for group, part in config.items():
        if isinstance(part, Mapping):
            values |= {f"{group}.{name}": value for name, value in part.items()}
        else:
            values[str(group)] = part
    return values


def build(values: Mapping[str, Any]) -> Config:
    """The config of {"group.field": value}, checked field by field.

    Raises UsageError for the first field that is unknown, missing, or has a value that it does not accept. The
    conditions that tie fields together are `experiment.conditions`.
    """
    values = modern(values)
    for name, value in values.items():
        if name in GROUPS:
            refuse(name, value, "a group of fields")
        if name not in TABLE:
            refuse(name, value, hints.other_fields(name))
    for name in TABLE:
        if name not in values:
            refuse(name, "(missing)", "a config with every field; begin with dfm_jax.configs.base.get_config()", str)
    values = with_auto(values)
    parts: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for name, field in TABLE.items():
        group, _, leaf = name.partition(".")
        parts[group][leaf] = read(field, values[name])
    groups: dict[str, Any] = {group: cls(**parts[group]) for group, cls in GROUPS.items()}
    return Config(**groups)


def with_auto(values: Mapping[str, Any]) -> dict[str, Any]:
    """`training.auto` with the fields whose value is "auto", which then have their defaults."""
    left = [name for name, field in TABLE.items() if field.auto and values[name] == "auto"]
    if not left:
        return dict(values)
    named = tuple(dict.fromkeys((*values[AUTO], *left)))
    return {**values, **{name: TABLE[name].default for name in left}, AUTO: named}


def modern(values: Mapping[str, Any], say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The values under the names, and with the values, of today. UsageError where one is gone for good.

    say: is told of every name and value that another one is taken for.
    """
    now = {}
    for name, value in values.items():
        if name not in TABLE and (old := retired.of_name(name)):
            if not old.to:
                refuse(name, value, old.note, gone=True)
            if say:
                say(f"config.{name} is now config.{old.to}, which takes its value {shown(value)}")
            name = old.to
        if old := retired.of_value(name, value):
            if not old.to:
                refuse(name, value, old.note, gone=True)
            if say:
                say(f"config.{name} = {shown(value)} is now {old.to}")
            value = old.to
        now[name] = value
    return now


def read(field: Field, value: Any) -> Any:
    """`value` as the field's type, `~` expanded. UsageError where it is not what the field accepts."""
    if isinstance(value, list):
        value = tuple(value)  # JSON has no tuples
    if wanted := type_fault(value, field.kind):
        refuse(field.name, value, wanted)
    if field.kind is float:
        try:
            value = float(value)
        except OverflowError:
            refuse(field.name, value, field.expected)
    elif field.kind is int:
        value = int(value)
    if field.path:
        value = tuple(map(home, value)) if isinstance(value, tuple) else home(value)
    if wanted := value_fault(value, field.accepted):
        refuse(field.name, value, wanted)
    return value


def home(path: str) -> str:
    """`path` with a leading `~`, also after NAME@, as the home folder."""
    name, at, place = path.partition("@")
    return f"{name}@{os.path.expanduser(place)}" if at and place.startswith("~") else os.path.expanduser(path)


def shown(value: Any) -> str:
    """A value in an error: text as it was written, anything long or deep cut."""
    if isinstance(value, str) and value and value.isprintable() and len(value) <= _short.maxstring:
        return value
    return _short.repr(value)


def refuse(name: str, value: Any, expected: str, show: Callable[[Any], str] = shown, gone: bool = False) -> NoReturn:
    """Raises the UsageError of a field whose value is not what is expected."""
    raise UsageError(f"config.{name} = {show(value)}: {'gone; ' if gone else ''}expected {expected}")
