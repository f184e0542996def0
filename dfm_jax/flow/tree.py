"""Frozen objects that are pytrees: their arrays are leaves, so that a program takes them as arguments or as shapes."""

import functools
from typing import Any, ClassVar, Self

import jax


class Tree:
    """An immutable object whose attributes named in `leaves` are its children (arrays or trees); the others are static.

    Two trees have the same structure when their static attributes are equal (or, where they cannot be hashed, the same
    object). Rebuilding one runs no check: its leaves may be tracers, shapes or shardings.
    """

    leaves: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        jax.tree_util.register_pytree_with_keys(cls, _flatten_with_keys, functools.partial(_unflatten, cls), _flatten)

    def with_leaves(self, **values: Any) -> Self:
        """A copy with other children under some names of `leaves`; nothing is checked, as in any rebuilding."""
        if not set(values) <= set(self.leaves):
            raise ValueError(f"leaves = {sorted(values)}: expected some of {list(self.leaves)}")
        other = object.__new__(type(self))
        for name, value in {**vars(self), **values}.items():
            object.__setattr__(other, name, value)
        return other

    def with_leaves_of(self, other: "Tree") -> Self:
        """A copy with the children of `other`, a tree of this class that may differ in what is static."""
        return self.with_leaves(**{name: getattr(other, name) for name in self.leaves})


class Static:
    """Attributes by name, hashable and comparable: by value where the value can be hashed, else by identity."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static) or self.values.keys() != other.values.keys():
            return False
        return all(_same(value, other.values[name]) for name, value in self.values.items())

    def __hash__(self) -> int:
        return hash(tuple((name, _hash(value)) for name, value in sorted(self.values.items())))


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        hash(one)
    except TypeError:
        return False
    return type(one) is type(other) and bool(one == other)


def _hash(value: Any) -> int:
    try:
        return hash(value)
    except TypeError:
        return id(value)


def _flatten(tree: Tree) -> tuple[tuple[Any, ...], Static]:
    values = dict(vars(tree))
    children = tuple(values.pop(name, None) for name in type(tree).leaves)
    return children, Static(values)


def _flatten_with_keys(tree: Tree) -> tuple[tuple[tuple[Any, Any], ...], Static]:
    children, static = _flatten(tree)
    keys = (jax.tree_util.GetAttrKey(name) for name in type(tree).leaves)
    return tuple(zip(keys, children, strict=True)), static


def _unflatten(cls: type, static: Static, children: Any) -> Any:
    tree = object.__new__(cls)
    for name, value in (*static.values.items(), *zip(cls.leaves, children, strict=True)):  # pyright: ignore
        object.__setattr__(tree, name, value)
    return tree


class Kept(Tree):
    """Any other object as a tree without leaves: a user's own step or source, which is then a constant of a program."""

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "value", value)

    @staticmethod
    def wrap(value: Any) -> Any:
        """`value` where it is a `Tree`, else in a `Kept`."""
        return value if isinstance(value, Tree) else Kept(value)

    @staticmethod
    def unwrap(tree: Any) -> Any:
        """What `wrap` was given."""
        return vars(tree)["value"] if isinstance(tree, Kept) else tree


def take_old_names(cls: type, names: dict[str, str]) -> None:
    """Gives `cls` what it defines under an old name (key) under the new one (value) too, where it does not itself."""
    for old, new in names.items():
        if old in vars(cls) and new not in vars(cls):
            setattr(cls, new, vars(cls)[old])
