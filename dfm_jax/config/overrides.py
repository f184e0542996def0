"""Words of a command line as values of fields: `optim.lr`, "1e-3" -> 0.001."""

import ast
import os.path
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dfm_jax.config import hints
from dfm_jax.config.checks import modern, refuse
from dfm_jax.config.fields import TABLE


def apply(
    values: Mapping[str, Any], overrides: Iterable[tuple[str, str]], say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """`values` ({"group.field": value}, as `checks.build` takes them) with each override, read as its field's type.

    A later override of a field replaces an earlier one. say: is told of old names that are taken for new ones.
    Raises UsageError for a field that there is not, and for a text that is not of its type.
    """
    changed = dict(values)
    for name, text in overrides:
        ((name, text),) = modern({name: text}, say).items()
        if name not in TABLE:
            refuse(name, text, hints.other_fields(name))
        left = TABLE[name].auto and text == "auto"  # to the text and the device
        changed[name] = text if left else read_value(name, text, TABLE[name].kind)
    return changed


def read_value(name: str, text: str, kind: type) -> Any:
    """`text` as the type `kind`; UsageError where it is none."""
    if kind is str:
        return text
    if kind is tuple:
        return read_list(text)
    if kind is bool:
        if text.lower() in ("true", "1", "yes", "on"):
            return True
        if text.lower() in ("false", "0", "no", "off"):
            return False
        refuse(name, text, "true or false")
    plain = text.replace("_", "")
    try:
        return kind(plain)
    except ValueError:
        pass
    # 1e6 is a whole number, whatever its spelling.
    try:
        if kind is int and float(plain) == int(float(plain)):
            return int(float(plain))
    except (ValueError, OverflowError):
        pass
    refuse(name, text, TABLE[name].expected)


def read_list(text: str) -> tuple[str, ...]:
    """ "a,b" and "(a,b)" as ("a", "b"); as Python writes it, for names with commas, brackets or spaces: "('a, b',)".

    A text that is itself the name of a file or folder is that one name.
    """
    if os.path.exists(text):
        return (text,)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        try:
            items = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            text = text[1:-1]
        else:
            return tuple(str(item) for item in (items if isinstance(items, (tuple, list)) else [items]))
    return tuple(item.strip() for item in text.split(",") if item.strip())
