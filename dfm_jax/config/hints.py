"""Which field was meant: by what other programs call it, by the same name in another group, by its letters."""

import difflib
from collections.abc import Iterable

from dfm_jax.config.fields import GROUPS, TABLE

CLOSE = 0.6  # share of equal letters from which on a name may be a misspelling
VERY_CLOSE = 0.85  # and from which on it is one, whatever other groups have


def meant(name: str) -> str | None:
    """The field that "group.field", or "field" alone, was probably meant to be."""
    group, _, leaf = name.rpartition(".")
    leaf = leaf.lower().replace("-", "_")
    own = group if group in GROUPS else next(iter(difflib.get_close_matches(group, GROUPS, 1, CLOSE)), "")
    within = [field for field in TABLE if field.startswith(f"{own}.")]
    every = list(TABLE)
    return (
        _closest(leaf, within, VERY_CLOSE)
        or next((field for field in every if leaf == field.partition(".")[2]), None)
        or next((field for field in every if leaf in TABLE[field].also), None)
        or _closest(leaf, within, CLOSE)
        or _closest(leaf, every, CLOSE)
    )


def _closest(leaf: str, fields: Iterable[str], least: float) -> str | None:
    """The field one of whose names is most like `leaf`, at least so much; the same name comes first."""
    best, found = least, None
    for field in fields:
        for word in (field.partition(".")[2], *TABLE[field].also):
            ratio = difflib.SequenceMatcher(None, leaf, word).ratio()
            if ratio > best:
                best, found = ratio, field
    return found


def other_fields(name: str) -> str:
    """The words after "expected": the field that was meant, and the fields, or groups, that there are."""
    group = name.partition(".")[0]
    names = [field for field in TABLE if field.startswith(f"{group}.")]
    listed = f"a field of {group}: {', '.join(names)}" if names else f"a field of {', '.join(GROUPS)}"
    field = meant(name)
    return listed + (f" (did you mean config.{field}?)" if field else "")
