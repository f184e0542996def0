"""Several processes as one program: joining them, waiting for each other, agreeing to stop."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dfm_jax.runtime.errors import UsageError

# A process that dies is noticed by the others after this many seconds, and ends them.
HEARTBEAT_SECONDS = 60


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes named by flags, or by Slurm where `srun` started several tasks. Else does nothing."""
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if any(v is not None for v in given.values()):
        for name, value in given.items():
            if value is None:
                raise UsageError(f"{name}=(missing): accepted are coordinator, num_processes and process_id together")
        assert num_processes is not None and process_id is not None
        if not 0 <= process_id < num_processes:
            raise UsageError(f"process_id={process_id}: accepted is 0 to {num_processes - 1}, below num_processes")
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in os.environ:
        # jax binds one device to a task; a task that has its node to itself takes all of the node's.
        alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
        gpus = int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
        jax.distributed.initialize(
            local_device_ids=range(gpus) if alone and gpus else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )


def is_first() -> bool:
    """Whether this process writes logs, samples and reports."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Returns once every process has come to the point called `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether `flag` is true on any process; all of them have to ask, and wait for each other."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def from_first(value: int) -> int:
    """Process 0's value, on every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


class Agreement:
    """Whether any process wants to stop, asked without waiting: the answer is read one step late.

    A signal reaches the processes at different steps, but all have to save the same one. Compiled without the options
    of `runtime.compiler`: they are for loops and for arithmetic that rounds, and this is one maximum of integers.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        self._local = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._any = jax.jit(jnp.max, out_shardings=whole)

    def ask(self, wanted: bool) -> Any:
        """The answer, on its way: `bool()` it later."""
        if jax.process_count() == 1:
            return wanted
        flags = np.full(self._local, wanted, np.int32)
        return self._any(jax.make_array_from_process_local_data(self._sharding, flags))
