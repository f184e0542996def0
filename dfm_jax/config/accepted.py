"""What a field accepts: in words, and as a test of the value and of what float32 makes of it."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

LARGEST = 2**31 - 1  # steps and rows are counted in int32 on the devices
MOST_TIMES = 2**24  # float32 tells no more times in [0, 1] apart
TYPES = {str: "text", bool: "true or false", int: "an integer", float: "a number", tuple: "a list of texts"}


@dataclasses.dataclass(frozen=True)
class Accepted:
    """words: after "expected". holds: the test. names: where another room has a table of names, those.

    Names are looked at by `experiment.conditions` and for help alone: reading a config imports no other room.
    """

    words: str
    holds: Callable[[Any], Any]
    names: Callable[[], Iterable[str]] | None = None

    def __str__(self) -> str:
        return f"{self.words} {', '.join(self.names())}" if self.names else self.words


ANYTHING = Accepted("any text", lambda v: True)
SWITCH = Accepted("true or false", lambda v: True)
POSITIVE = Accepted("an integer above 0, below 2**31", lambda v: 1 <= v <= LARGEST)
COUNT = Accepted("an integer of 0 or more, below 2**31", lambda v: 0 <= v <= LARGEST)
TIMES = Accepted("an integer above 0, at most 2**24", lambda v: 1 <= v <= MOST_TIMES)
TIMES_OR_0 = Accepted("an integer of 0 or more, at most 2**24", lambda v: 0 <= v <= MOST_TIMES)
FRACTION = Accepted("a number in [0, 1)", lambda v: 0 <= v < 1)
PROPORTION = Accepted("a number in (0, 1]", lambda v: 0 < v <= 1)
SHARE = Accepted("a number in [0, 1]", lambda v: 0 <= v <= 1)
NON_NEGATIVE = Accepted("a number of 0 or more", lambda v: 0 <= v < math.inf)
ABOVE_ZERO = Accepted("a number above 0", lambda v: 0 < v < math.inf)
AXIS = Accepted("an integer above 0, or -1 for whatever is left", lambda v: 1 <= v <= LARGEST or v == -1)
NAME = Accepted("a name or a path", bool)
NAMES = Accepted("names or paths, separated by commas", all)


def one_of(*names: str) -> Accepted:
    return Accepted("one of " + ", ".join(names), lambda v: v in names)


def one_from(names: Callable[[], Iterable[str]]) -> Accepted:
    """One of the names in another room's table."""
    return Accepted("one of", bool, names)


def matching(words: str, pattern: str) -> Accepted:
    return Accepted(words, re.compile(pattern).fullmatch)


def type_fault(value: Any, kind: type) -> str | None:
    """What a field of type `kind` takes, in words, if `value` is no such thing; an integer is a number too."""
    if isinstance(value, tuple):
        fits = kind is tuple and all(isinstance(item, str) for item in value)
    elif isinstance(value, bool):
        fits = kind is bool
    else:
        fits = isinstance(value, (int, float) if kind is float else kind)
    texts = value if isinstance(value, tuple) else (value,)
    if fits and any(isinstance(text, str) and "\0" in text for text in texts):
        return f"{TYPES[kind]} without a NUL character"
    return None if fits else TYPES[kind]


def value_fault(value: Any, accepted: Accepted) -> str | None:
    """What is expected, in words, if `value` (of the right type) is not it, or float32 makes something else of it."""
    if not accepted.holds(value):
        return str(accepted)
    if isinstance(value, float):
        becomes = in_float32(value)
        if (becomes == 0) != (value == 0) or not accepted.holds(becomes):
            return f"{accepted}; float32 makes it {becomes:g}"
    return None


def in_float32(value: float) -> float:
    """What the devices compute with: rounded to float32, too large is infinite, below the normal numbers is 0."""
    with np.errstate(over="ignore", under="ignore"):
        becomes = float(np.float32(value))
    return 0.0 if abs(becomes) < np.finfo(np.float32).tiny else becomes
