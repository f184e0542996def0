"""Flat names for the leaves of a pytree: "model.blocks.qkv.kernel.value"."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of `tree` by their dotted paths. With a `prefix` the names begin with it and a dot.

    Raises:
      ValueError: two leaves have the same name (a key contains a dot), or a single leaf has none.
    """
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = _name(path, prefix)
        if not name or name in named:
            raise ValueError(f"leaf name = {name!r}: expected a name of its own for every leaf")
        named[name] = leaf
    return named


def unflatten(like: Any, named: dict[str, Any], prefix: str = "") -> Any:
    """The inverse of `flatten`: a tree like `like` whose leaves come from `named`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: named[_name(path, prefix)], like)


def _name(path: tuple, prefix: str) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return f"{prefix}.{name}" if prefix and name else prefix or name


def differences(
    stored: Mapping[str, jax.ShapeDtypeStruct], wanted: Mapping[str, jax.ShapeDtypeStruct], *, part: bool
) -> list[str]:
    """The differences between `stored` and `wanted`, a line per leaf, sorted; empty if there is none.

    part: `wanted` may be a part of `stored`, and dtypes may differ.
    """
    found = [f"{name} is missing" for name in wanted.keys() - stored.keys()]
    if not part:
        found += [f"{name} is not in this model" for name in stored.keys() - wanted.keys()]
    for name in wanted.keys() & stored.keys():
        here, there = wanted[name], stored[name]
        if here.shape != there.shape or (not part and here.dtype != there.dtype):
            found.append(f"{name} is {_describe(there)} and not {_describe(here)}")
    return sorted(found)


def _describe(leaf: jax.ShapeDtypeStruct) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
