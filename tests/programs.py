"""How tests compile, and the environment of a program that a test starts. Imports no jax."""

import importlib.metadata
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def least_compilation() -> str:
    """XLA_FLAGS with which a program is compiled in the least time; it may run slower."""
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    # Loops are then emitted as LLVM's code and not by way of MLIR: of a small network's gradient, compilation takes a
    # quarter of the processor time (jax 0.10.2). Later versions know no such flag, and XLA ends where it knows none.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


def environment(**changes: str) -> dict[str, str]:
    """This process's, with the repository importable from any folder. What PYTHONPATH names already stays on it."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Threads for every collective that simulated devices may be in at once: by default there are as many as cores.
    threads = {"NPROC": "16"} if "device_count" in changes.get("XLA_FLAGS", "") else {}
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)} | threads | changes


def flags(devices: int) -> str:
    """XLA_FLAGS of this process and so many simulated devices."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
