"""Frozen objects that are pytrees. Their arrays are leaves, so a program takes them as arguments or as shapes."""

import functools
from typing import Any, ClassVar, Self

import jax


class Tree:
    """An immutable pytree. The attributes named in `leaves` are its children (arrays or trees); all others are static.

    Two trees have the same structure if their static attributes are equal. Attributes that cannot be hashed count as
    equal only if they are the same object. Rebuilding a tree runs no check, as leaves may be tracers, shapes or
    shardings.
    """

    leaves: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        jax.tree_util.register_pytree_with_keys(cls, _flatten_with_keys, functools.partial(_unflatten, cls), _flatten)

    def with_leaves(self, **values: Any) -> Self:
        """A copy with other children under some of the names in `leaves`; the values are not checked.

        Raises ValueError for a name that is not in `leaves`.
        """
        if not set(values) <= set(self.leaves):
            raise ValueError(f"leaves = {sorted(values)}: expected some of {list(self.leaves)}")
        other = object.__new__(type(self))
        for name, value in {**vars(self), **values}.items():
            object.__setattr__(other, name, value)
        return other

    def with_leaves_of(self, other: "Tree") -> Self:
        """A copy with the children of `other`, a tree of this class whose static attributes may differ."""
        return self.with_leaves(**{name: getattr(other, name) for name in self.leaves})


class Static:
    """Attributes by name, hashable and comparable. Values that cannot be hashed are compared by identity."""

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
    """Wraps any other object as a tree without leaves. A user's own step or source is then a constant of a program."""

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "value", value)

    @staticmethod
    def wrap(value: Any) -> Any:
        """`value` itself if it is a `Tree`, else a `Kept` around it."""
        return value if isinstance(value, Tree) else Kept(value)

    @staticmethod
    def unwrap(tree: Any) -> Any:
        """The object that `wrap` was given."""
        return vars(tree)["value"] if isinstance(tree, Kept) else tree


def take_old_names(cls: type, names: dict[str, str]) -> None:
    """For every old name (key) that `cls` defines, also sets the new name (value) unless `cls` defines that itself."""
    for old, new in names.items():
        if old in vars(cls) and new not in vars(cls):
            setattr(cls, new, vars(cls)[old])
