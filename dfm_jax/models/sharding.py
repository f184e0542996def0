"""Where every parameter lives: one table from parameter paths to mesh axes.

Heads, MLP width and vocabulary are split over tensor, parameters (with the optimizer's moments and the average, whose
paths end alike) over fsdp and tensor. The mesh itself is `runtime.mesh`.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dfm_jax.runtime.mesh import axis_size

# First match wins. Leaves of the stacked blocks have a leading axis of n_blocks, which is never split.
RULES: tuple[tuple[str, P], ...] = (
    (r"\.v_(row|col)\.", P()),  # Adafactor's means over the rows and columns of a matrix
    (r"embedding\.table", P("tensor", "fsdp")),
    (r"head\.kernel", P("fsdp", "tensor")),
    (r"head\.bias", P(("tensor", "fsdp"))),
    (r"blocks\.qkv\.kernel", P(None, "fsdp", None, "tensor")),
    (r"blocks\.mlp_up\.kernel", P(None, "fsdp", "tensor")),
    (r"blocks\.mlp_up\.bias", P(None, ("tensor", "fsdp"))),
    (r"blocks\.(attention_out|mlp_down)\.kernel", P(None, "tensor", "fsdp")),
    (r"blocks\.modulation", P(None, None, None, "fsdp")),
    (r"final_modulation", P(None, None, "fsdp")),
    (r"blocks\..*(scale|bias)", P(None, "fsdp")),
    (r"kernel", P(None, "fsdp")),
)


# Smaller leaves are kept whole on every device: splitting them saves nothing and costs a collective.
MIN_SIZE = 2**14


def splits_parameters(mesh: Mesh | None) -> bool:
    """Whether devices hold parts of parameters, so that every block of a forward pass exchanges data."""
    return mesh is not None and mesh.shape["fsdp"] * mesh.shape["tensor"] > 1


def leaf_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> tuple[P, str | None]:
    """The spec of one leaf, and a line that names the axes of its rule that had to be left out, if any had."""
    if np.prod(shape, dtype=int) < MIN_SIZE:
        return P(), None
    for pattern, rule in RULES:
        if re.search(pattern, path):
            # A bias has its kernel's last axes: the rule is read from the right.
            axes = (None,) * (len(shape) - len(rule)) + tuple(rule)[max(len(rule) - len(shape), 0) :]
            fits = [a is None or size % axis_size(mesh, a) == 0 for size, a in zip(shape, axes, strict=True)]
            spec = P(*(a if fit else None for a, fit in zip(axes, fits, strict=True)))
            dropped = [
                f"{a} ({axis_size(mesh, a)} does not divide {size})"
                for size, a, fit in zip(shape, axes, fits, strict=True)
                if a is not None and not fit
            ]
            return spec, f"{path} {shape}: not split over {', '.join(dropped)}" if dropped else None
    return P(), None


def state_specs(abstract: Any, mesh: Mesh | AbstractMesh) -> tuple[Any, list[str]]:
    """A PartitionSpec for each leaf of `abstract` (shapes and dtypes), and the notes on rules that did not divide."""
    notes = []

    def place(path: Any, leaf: Any) -> P:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec, note = leaf_spec(name, leaf.shape, mesh)
        if note and name.startswith("model."):  # moments and average follow, and need not be told again
            notes.append(note)
        return spec

    return jax.tree_util.tree_map_with_path(place, abstract), notes


def state_shardings(abstract: Any, mesh: Mesh) -> tuple[Any, list[str]]:
    """`state_specs` as a NamedSharding for each leaf."""
    specs, notes = state_specs(abstract, mesh)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)), notes
