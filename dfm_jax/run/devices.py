"""The mesh of the devices that are here: for training as the config says, for using a run as they allow."""

import jax

from dfm_jax.config import Config
from dfm_jax.runtime import processes
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.mesh import MeshShape, check_mesh, make_mesh
from dfm_jax.runtime.terminal import note


def training_mesh(config: Config) -> jax.sharding.Mesh:
    """The config's mesh over all devices of all processes. UsageError where batch, heads or devices do not fit it."""
    mesh = make_mesh(MeshShape(**config.mesh))
    check_mesh(
        mesh,
        batch_size=config.training.batch_size,
        grad_accum=config.training.grad_accum,
        n_heads=config.model.n_heads,
    )
    return mesh


def any_mesh(config: Config) -> jax.sharding.Mesh:
    """The config's mesh, whatever its batch and heads are. UsageError where the devices do not fit it."""
    return make_mesh(MeshShape(**config.mesh))


def using_mesh(config: Config) -> jax.sharding.Mesh:
    """The config's mesh, or where this machine is another one than the run's, all its devices on `data`."""
    try:
        return make_mesh(MeshShape(**config.mesh))
    except UsageError:
        if processes.is_first():
            note(f"mesh: the run's does not fit {jax.device_count()} devices; all of them take rows of the batch")
        return make_mesh(MeshShape())
