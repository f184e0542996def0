"""A run, wherever it is: a run's folder, a folder that `--format=hub` wrote, or hf:OWNER/NAME."""

import os
import pathlib

import jax

from dfm_jax.checkpoints.published import hub
from dfm_jax.checkpoints.published.folder import of_ours
from dfm_jax.run.load import Run
from dfm_jax.run.load import load as load_run
from dfm_jax.runtime.errors import UsageError, WorldError


def load(place: str | os.PathLike, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> Run:
    """The run in a folder, or the one that was published as a folder or as hf:OWNER/NAME. Raises as `run.load.load`."""
    folder = find(place)
    if of_ours(folder) is None:
        return load_run(folder, step=step, mesh=mesh)
    try:
        return load_run(folder, step=step, mesh=mesh)
    except UsageError as error:  # what the folder says does not go together
        raise WorldError(f"folder = {os.fspath(place)}: {error}") from error


def find(place: str | os.PathLike) -> pathlib.Path:
    """The folder of a run, of hf:OWNER/NAME that in the hub's cache.

    Raises WorldError where the hub cannot be asked or its repository is none that `--format=hub` wrote.
    """
    text = os.fspath(place)
    if not text.startswith(hub.PREFIX):
        return pathlib.Path(text).expanduser()
    folder = hub.fetch(text, "folder")
    if of_ours(folder) is None:
        raise WorldError(f"folder = {text}: expected a repository that --format=hub wrote; --mode=import reads others")
    return folder
