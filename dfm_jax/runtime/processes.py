"""Several processes as one program: joining, comparing what each was told, waiting for each other, ending together."""

import atexit
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dfm_jax.runtime.errors import UsageError, WorldError, in_one_line
from dfm_jax.runtime.peers import Listener, Watch
from dfm_jax.runtime.terminal import note, warn

# jax ends the other processes when one has not been heard of for this many seconds: one that hangs. See `peers` for one
# that dies.
HEARTBEAT_SECONDS = 45
# For all to come: the tasks of a Slurm job start at about the same time.
JOIN_SECONDS = 300
WAITING_SECONDS = 20

_watch: Watch | None = None


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes named by flags, or by Slurm where `srun` started several tasks. Else does nothing.

    Raises UsageError for flags that are no such group.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if any(v is not None for v in given.values()):
        for name, value in given.items():
            if value is None:
                raise UsageError(f"{name} = (missing): expected coordinator, num_processes and process_id together")
        assert coordinator is not None and num_processes is not None and process_id is not None
        if not 0 <= process_id < num_processes:
            raise UsageError(f"process_id = {process_id}: expected 0 to {num_processes - 1}, below num_processes")
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
            raise UsageError(f"coordinator = {coordinator}: expected HOST:PORT of process 0")
        _join(coordinator, num_processes, process_id, host=host.strip("[]"))
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in os.environ:
        # jax binds one device to a task; a task that has its node to itself takes all of the node's.
        alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
        gpus = int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
        _join(local_device_ids=range(gpus) if alone and gpus else None)


class _PluginFaults(logging.Filter):
    """Keeps back what jax logs, with its stack, of a plugin that does not load: a line is enough of it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self.lines.append(" ".join(f"{record.getMessage()}: {error}".split()))
        return error is None


def find_devices() -> None:
    """UsageError where JAX_PLATFORMS names what is not there."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    faults, logger = _PluginFaults(), logging.getLogger("jax._src.xla_bridge")
    logger.addFilter(faults)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax asserts that one of those that are named is there
        reason = " ".join(str(error).split("(set JAX_PLATFORMS")[0].split()).rstrip(". ")
        reason = reason or "; ".join(faults.lines) or "no such device"
        raise UsageError(
            f"JAX_PLATFORMS = {platforms or '(empty)'}: {reason}; expected a platform that is here, such as cpu, or "
            "nothing for the best there is"
        ) from None
    finally:
        logger.removeFilter(faults)
    for line in faults.lines:
        warn(line)


def _join(*where: Any, host: str | None = None, **options: Any) -> None:
    """Waits for all processes, then watches them."""
    global _watch

    def late() -> None:
        count = f"{where[1]} processes" if where else "Slurm's tasks"
        line = (
            f"error: coordinator = {where[0] if where else '(from Slurm)'}: not all of {count} have come within "
            f"{JOIN_SECONDS} s; expected the same command on each, started at about the same time, and a port that "
            "they can reach"
        )
        os.write(2, (line + "\n").encode("utf-8", "replace"))
        os._exit(1)

    waits = threading.Timer(WAITING_SECONDS, lambda: note("waiting for the other processes of the run"))
    ends = threading.Timer(JOIN_SECONDS, late)
    for timer in (waits, ends):
        timer.daemon = True
        timer.start()
    # jax would end the process with a stack of C++ at its own time limit.
    jax.distributed.initialize(
        *where,
        **options,
        initialization_timeout=JOIN_SECONDS + 60,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
    status = in_one_line(lambda: find_devices() or 0)
    if status:
        sys.stderr.flush()
        os._exit(status)  # jax's farewell would wait for the others, who wait for this process's devices
    index, count = jax.process_index(), jax.process_count()
    if count > 1:
        listener = Listener(host) if index == 0 else None
        address = json.loads(_gather(json.dumps(listener.address if listener else {}))[0])
        try:
            _watch = Watch(index, count, address, listener)
            atexit.register(_watch.done)  # before jax's farewell, in which the processes wait for each other
        except OSError as error:
            warn(f"process {index} cannot watch the others ({error}); who ended is noticed after {HEARTBEAT_SECONDS} s")
    for timer in (waits, ends):
        timer.cancel()


def together(command: Callable[[], int]) -> int:
    """The exit status of a command that all processes carry out. If it fails here, the other processes end too.

    With several processes this does not return where the command fails: what is wrong is said, and the process ends.
    """
    if not jax.distributed.is_initialized():
        return command()
    try:
        status = in_one_line(command)
    except Exception:
        # Most likely another process ended, and a collective with it. Then the watch says so and ends this one.
        reason = traceback.format_exc()
        time.sleep(1)
        sys.stderr.write(reason)
        status = 1
    if _watch is not None:
        if status:
            _watch.fail(status)
        _watch.done()
    return status


def agree(facts: Mapping[str, Any]) -> None:
    """Compares what each process was told, {name: value}; all of them have to ask, and wait for each other.

    A name that another process does not have is not compared with it.

    Raises:
      UsageError: on every process, naming what differs with both values.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    told = [json.loads(text) for text in _gather(json.dumps({name: str(value) for name, value in facts.items()}))]
    for index, other in enumerate(told):
        different = [name for name, value in told[0].items() if other.get(name, value) != value]
        if different:
            name, *more = different
            also = f" (and {', '.join(more)})" if more else ""
            raise UsageError(
                f"{name} = {other[name]} on process {index}: expected {told[0][name]}, as on process 0{also}; the "
                "processes of a run are all given one command"
            )


def shared(find: Callable[[], Any]) -> Any:
    """What `find` gives here; its UsageError or WorldError on any process is an error on all of them."""
    found = failure = None
    try:
        found = find()
    except (UsageError, WorldError) as error:
        failure = error
    if any_process(failure is not None):
        raise failure or WorldError("another process of the run could not go on: see what it said; expected none")
    return found


def _gather(text: str) -> list[str]:
    """The text of every process, by its number."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray(len(data), np.int32)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


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
