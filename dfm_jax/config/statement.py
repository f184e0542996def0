"""How a field is stated: `field(default, meaning, accepted, ...)` in a group, and what can be asked of it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dfm_jax.config.accepted import Accepted


@dataclasses.dataclass(frozen=True)
class Continues:
    """Which other values of a field a run may be continued with. holds: (old, new, updates done) -> bool."""

    words: str
    holds: Callable[[Any, Any, int], bool]


FIXED = Continues("no", lambda old, new, done: False)
FREE = Continues("yes", lambda old, new, done: True)
# An average cannot begin or end in mid-run; another pace is possible.
PACE = Continues("between values above 0", lambda old, new, done: bool(old) and bool(new))
LATER = Continues("to no less than the steps that are done", lambda old, new, done: new >= done)
# Which tokenizer it is, the tokens tell: their fingerprint holds a hash of its files.
SAME_TOKENIZER = Continues(
    "to the same files at another place (hf:)", lambda old, new, done: str(old)[:3] == str(new)[:3] == "hf:"
)
# What a run has done stays: entries `STEP:...` may come after those there are, from a step on that is not done yet.
MORE_CHANGES = Continues(
    "by entries for steps that are not done yet",
    lambda old, new, done: (
        list(new[: len(old)]) == list(old) and all(int(entry.partition(":")[0]) >= done for entry in new[len(old) :])
    ),
)
SAME_TOKENS = Continues("to the same tokens at another place", lambda old, new, done: True)  # see resume.check


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    name: "group.field". kind: str, bool, int, float or tuple (of texts). network: whether a checkpoint is another
    network with another value. since: the version that had it first. path: whether `~` stands for the home folder.
    also: what other programs call it, for a hint. auto: whether it may be left to the text and the device.
    """

    name: str
    kind: type
    default: Any
    meaning: str
    unit: str
    accepted: Accepted
    continues: Continues
    network: bool
    since: str
    path: bool
    also: tuple[str, ...]
    auto: bool

    @property
    def expected(self) -> str:
        return str(self.accepted)


def field(
    default: Any,
    meaning: str,
    accepted: Accepted,
    *,
    unit: str = "",
    continues: Continues = FIXED,
    network: bool = False,
    since: str = "0.1",
    path: bool = False,
    also: tuple[str, ...] = (),
    auto: bool = False,
) -> Any:
    """A field of a group. For the arguments see `Field`; the name and the type are those of the attribute."""
    statement = {
        "meaning": meaning,
        "unit": unit,
        "accepted": accepted,
        "continues": continues,
        "network": network,
        "since": since,
        "path": path,
        "also": also,
        "auto": auto,
    }
    return dataclasses.field(default=default, metadata=statement)


@dataclasses.dataclass(frozen=True)
class Group(Mapping[str, Any]):
    """Fields as attributes and, for `**group`, as a read-only mapping of their names."""

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return any(f.name == name for f in dataclasses.fields(self))

    def __iter__(self) -> Iterator[str]:
        return (f.name for f in dataclasses.fields(self))

    def __len__(self) -> int:
        return len(dataclasses.fields(self))


def stated(group: str, cls: type) -> dict[str, Field]:
    """{"group.field": Field} of a group's class."""
    return {
        f"{group}.{f.name}": Field(f"{group}.{f.name}", type(f.default), f.default, **f.metadata)
        for f in dataclasses.fields(cls)
    }
