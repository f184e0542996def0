"""The device that a program is traced for: the default one, or the target of an ahead-of-time compile.

A kernel asks here what it may use, since a platform's name does not tell: our Pallas kernels are for one generation of
GPUs, and cuDNN's attention for several.
"""

import dataclasses
import re
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of device.

    Attributes:
        platform: jax's name, such as 'cpu', 'gpu' or 'tpu'.
        kind: the device's own name, such as 'NVIDIA H100 80GB HBM3'.
        capability: CUDA compute capability, such as (9, 0); None where the device has none, or it is not known.
    """

    platform: str
    kind: str
    capability: tuple[int, int] | None = None

    @property
    def is_gpu(self) -> bool:
        return self.platform in ("gpu", "cuda", "rocm")

    def __str__(self) -> str:
        if self.capability is not None:
            return f"{self.kind} of compute capability {self.capability[0]}.{self.capability[1]}"
        return f"{self.kind} of unknown compute capability" if self.is_gpu else self.kind


def of(device: Any) -> Target:
    """The target that a `jax.Device` is, be it of this machine or of a topology description."""
    # An AMD GPU answers with a name such as 'gfx942'.
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    capability = None if found is None else (int(found[1]), int(found[2]))
    return Target(device.platform, device.device_kind, capability)


def current() -> Target:
    """What the program being traced is for: the mesh in `jax.set_mesh` if there is one, else the default device."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is None:
        return of(_default_device())
    target = Target(described.platform, described.device_kind)
    if not target.is_gpu:
        return target
    # An abstract mesh tells the name of its devices, not their capability.
    alike = (device for device in _concrete_devices() if device.device_kind == described.device_kind)
    device = next(alike, None)
    return target if device is None else of(device)


def _default_device() -> Any:
    chosen: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is None or isinstance(chosen, str):
        return jax.local_devices(backend=chosen)[0]
    return chosen


def _concrete_devices() -> list[Any]:
    """Those of the mesh in `jax.set_mesh`, which need not be here, and those that are here."""
    # While tracing, no public function tells this mesh: jax.sharding.get_mesh() refuses.
    from jax._src.mesh import get_concrete_mesh

    mesh = get_concrete_mesh()
    return [*(() if mesh is None or mesh.empty else mesh.devices.flat[:1]), *jax.local_devices()]
