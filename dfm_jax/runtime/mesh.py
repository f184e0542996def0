"""The mesh of devices (data, fsdp, tensor): made from its shape, checked, and what lies on it.

The batch is split over data and fsdp. Where each parameter lies is `models.sharding`.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dfm_jax.runtime.errors import UsageError

AXES = ("data", "fsdp", "tensor")


BATCH = P(("data", "fsdp"))


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
                    f"config.mesh = {self.describe()}: expected axes whose product divides the {num_devices} devices"
                )
            sizes[free[0]] = num_devices // known
        elif known != num_devices:
            raise UsageError(
                f"config.mesh = {self.describe()}: expected axes whose product is {num_devices}, as many as devices"
            )
        return MeshShape(**sizes)

    def describe(self) -> str:
        return "x".join(str(n) for n in dataclasses.astuple(self))


def make_mesh(shape: MeshShape, devices: Any = None) -> Mesh:
    """A mesh over `devices` (all of them if None), with axes that the compiler partitions along by itself."""
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.astuple(shape.resolve(len(devices)))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def check_mesh(mesh: Mesh | AbstractMesh, *, batch_size: int, grad_accum: int, n_heads: int) -> None:
    """UsageError where the mesh does not divide the batch or the heads."""
    rows, tensor = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]
    if batch_size % (rows * grad_accum):
        raise UsageError(
            f"config.training.batch_size = {batch_size}: expected multiples of {rows * grad_accum}, "
            f"mesh.data * mesh.fsdp * training.grad_accum"
        )
    if n_heads % tensor:
        raise UsageError(f"config.mesh.tensor = {tensor}: expected divisors of model.n_heads={n_heads}")


def axis_size(mesh: Mesh | AbstractMesh, axis: str | tuple[str, ...]) -> int:
    """Devices along one axis, or along several taken together."""
    return math.prod(mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis))


def described(mesh: Mesh) -> str:
    """For example "8 x NVIDIA H100 80GB HBM3 in 2 processes"."""
    count = jax.process_count()
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind} in {count} process{'es' * (count > 1)}"


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp."""
    return NamedSharding(mesh, BATCH)


def global_batch(local: Any, mesh: Mesh) -> Any:
    """The global arrays whose rows on this process are `local` (a pytree of numpy arrays)."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch_sharding(mesh), x), local)
