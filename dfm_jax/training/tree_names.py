"""Flat names for the leaves of a pytree: "model.blocks.qkv.kernel.value"."""

from typing import Any

import jax


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of `tree` by their dotted paths, each behind `prefix` and a dot if it is given.

    Raises:
      ValueError: two leaves have one name (a key that holds a dot), or a lone leaf has none.
    """
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = _name(path, prefix)
        if not name or name in named:
            raise ValueError(f"leaf name={name!r}: accepted a name of its own for every leaf")
        named[name] = leaf
    return named


def unflatten(like: Any, named: dict[str, Any], prefix: str = "") -> Any:
    """The tree of `like`'s structure whose leaves are looked up in `named`: undoes `flatten`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: named[_name(path, prefix)], like)


def _name(path: tuple, prefix: str) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return f"{prefix}.{name}" if prefix and name else prefix or name
