"""The environment of a program that a test starts."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def environment(**changes: str) -> dict[str, str]:
    """This process's, with the repository importable from any folder. What PYTHONPATH names already stays on it."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Threads for every collective that simulated devices may be in at once: by default there are as many as cores.
    threads = {"NPROC": "16"} if "device_count" in changes.get("XLA_FLAGS", "") else {}
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)} | threads | changes


def flags(devices: int) -> str:
    """XLA_FLAGS of this process and so many simulated devices."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
