"""Where every array lives: a mesh (data, fsdp, tensor), and one table from parameter paths to its axes.

The batch is split over data and fsdp, heads, MLP width and vocabulary over tensor, parameters (with the
optimiser's moments and the average, whose paths end alike) over fsdp and tensor.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dfm_jax.errors import UsageError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# First match wins. Leaves of the stacked blocks have a leading axis of n_blocks, which is never split.
RULES: tuple[tuple[str, P], ...] = (
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


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; one of them may be -1, whatever is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def resolve(self, num_devices: int) -> "MeshShape":
        """The shape with its -1 filled in; UsageError where it does not use exactly `num_devices`."""
        sizes = dataclasses.asdict(self)
        known = int(np.prod([n for n in sizes.values() if n != -1]))
        free = [name for name, n in sizes.items() if n == -1]
        if free:
            if num_devices % known:
                raise UsageError(
                    f"config.mesh={self.describe()}: accepted are axes whose product divides the {num_devices} devices"
                )
            sizes[free[0]] = num_devices // known
        elif known != num_devices:
            raise UsageError(
                f"config.mesh={self.describe()}: accepted are axes whose product is {num_devices}, as many as devices"
            )
        return MeshShape(**sizes)

    def describe(self) -> str:
        return "x".join(str(n) for n in dataclasses.astuple(self))


def make_mesh(shape: MeshShape, devices: Any = None) -> Mesh:
    """A mesh over `devices` (all of them if None), with axes that the compiler partitions along by itself."""
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.astuple(shape.resolve(len(devices)))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def splits_parameters(mesh: Mesh | None) -> bool:
    """Whether devices hold parts of parameters, so that every block of a forward pass exchanges data."""
    return mesh is not None and mesh.shape["fsdp"] * mesh.shape["tensor"] > 1


def check_mesh(mesh: Mesh | AbstractMesh, *, batch_size: int, grad_accum: int, n_heads: int) -> None:
    """UsageError where the mesh does not divide the batch or the heads."""
    rows, tensor = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]
    if batch_size % (rows * grad_accum):
        raise UsageError(
            f"config.training.batch_size={batch_size}: accepted are multiples of {rows * grad_accum}, "
            f"mesh.data * mesh.fsdp * training.grad_accum"
        )
    if n_heads % tensor:
        raise UsageError(f"config.mesh.tensor={tensor}: accepted are divisors of model.n_heads={n_heads}")


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


def axis_size(mesh: Mesh | AbstractMesh, axis: str | tuple[str, ...]) -> int:
    """Devices along one axis, or along several taken together."""
    return math.prod(mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis))


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


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp."""
    return NamedSharding(mesh, BATCH)


def global_batch(local: Any, mesh: Mesh) -> Any:
    """The global arrays whose rows on this process are `local` (a pytree of numpy arrays)."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch_sharding(mesh), x), local)
