"""The environment of a program that a test starts."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def environment(**changes: str) -> dict[str, str]:
    """This process's, with the repository importable from any folder. What PYTHONPATH names already stays on it."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)} | changes


def flags(devices: int) -> str:
    """XLA_FLAGS of this process and so many simulated devices."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
