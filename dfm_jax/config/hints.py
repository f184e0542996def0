"""Which field was meant: by what other programs call it, by the same name in another group, by its letters."""

import difflib
from collections.abc import Iterable

from dfm_jax.config.fields import GROUPS, TABLE

CLOSE = 0.6  # share of equal letters from which on a name may be a misspelling
VERY_CLOSE = 0.85  # and from which on it is one, whatever other groups have
CLOSE_ANYWHERE = 0.75  # where the group is not known either


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
        or (None if own else _closest(leaf, every, CLOSE_ANYWHERE))
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
    """The words after "expected" where there is no field of that name: the one that was meant, or all there are."""
    if "." not in name and (close := difflib.get_close_matches(name, GROUPS, 1, CLOSE)):
        return f"config.{close[0]}.FIELD=VALUE; --help=config lists all fields"
    if field := meant(name):
        return f"a field that exists (did you mean config.{field}?); --help=config lists all"
    group = name.partition(".")[0]
    names = [field.partition(".")[2] for field in TABLE if field.startswith(f"{group}.")]
    if names:
        return f"one of the fields of {group}: {', '.join(names)}"
    return f"a field of one of the groups {', '.join(GROUPS)}; --help=config lists all"
