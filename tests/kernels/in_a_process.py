"""The environment of the scripts beside this file, which tests run in processes of their own."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def environment(**variables: str) -> dict[str, str]:
    """This process's, with the repository before whatever else it imports from, on the processor."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places), "JAX_PLATFORMS": "cpu"} | variables
