"""What the processes of one run must have been told alike."""

import functools
import hashlib
import os
import pathlib
import socket
from typing import Any

import jax

from dfm_jax.cli.command_line import Command
from dfm_jax.config import TABLE

# What a machine may have its own of. Corpora that are paths are compared by their tokens, see `experiment.streams`.
OWN = ("data.num_workers", "data.cache_dir", "training.compilation_cache")
OWN_OPERANDS = ("process_id", "coordinator", "prompt_file", "from", "output", "target")


def facts(command: Command) -> dict[str, Any]:
    """{name: value} of what has to be the same on every process, for `processes.agree`."""
    code = {"code version": f"{code_digest()}, jax {jax.__version__}"}
    fields = {f"config.{name}": _value(name, command.config[name]) for name in TABLE if name not in OWN}
    operands = {name: value for name, value in command.operands.items() if name not in OWN_OPERANDS}
    # Between machines a folder may have two names; on one machine two names are two folders.
    folder = (
        {} if command.workdir is None else {f"workdir on {socket.gethostname()}": os.path.realpath(command.workdir)}
    )
    return code | {"mode": command.mode} | fields | operands | folder


def _value(name: str, value: Any) -> Any:
    """A field's value; of a path only that it is one."""
    if isinstance(value, tuple):
        return tuple(_value(name, part) for part in value)
    is_path = TABLE[name].path and isinstance(value, str) and (os.sep in value or os.path.exists(value))
    return "(a path)" if is_path else value


@functools.cache
def code_digest() -> str:
    """Of every Python file of the package and its kernels: 12 hex digits."""
    package = pathlib.Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for root in (package, package.parent / "kernels"):
        for file in sorted(root.rglob("*.py")) if root.is_dir() else ():
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
