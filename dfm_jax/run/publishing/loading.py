"""A run, wherever it is: a run's folder, a folder that `--format=hub` wrote, or hf:OWNER/NAME."""

import json
import os
import pathlib

import flax.nnx as nnx
import jax
import numpy as np

from dfm_jax import config as configs
from dfm_jax.checkpoints import published
from dfm_jax.checkpoints.published import folder as folders
from dfm_jax.checkpoints.published import hub
from dfm_jax.checkpoints.published.layouts import OURS
from dfm_jax.config import Config
from dfm_jax.data import get_tokenizer
from dfm_jax.data.tokenizers import changed
from dfm_jax.experiment import conditions, tables
from dfm_jax.experiment.problem import get_model_config, get_problem
from dfm_jax.models import sharding
from dfm_jax.models.transformer import Transformer
from dfm_jax.run.load import Run
from dfm_jax.run.load import load as load_run
from dfm_jax.run.publishing import convert
from dfm_jax.runtime import cache, files
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.mesh import MeshShape, make_mesh


def load(place: str | os.PathLike, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> Run:
    """The run in a folder, or the one that was published as a folder or as hf:OWNER/NAME. Raises as `run.load.load`."""
    text = os.fspath(place)
    on_hub = text.startswith(hub.PREFIX)
    path = hub.fetch(text, "folder") if on_hub else pathlib.Path(text).expanduser()
    if not on_hub and not is_published(path):
        return load_run(path, step=step, mesh=mesh)
    if not is_published(path):
        raise WorldError(f"folder = {text}: expected a repository that --format=hub wrote; --mode=import reads others")
    return of_folder(path, text, step=step, mesh=mesh)


def is_published(path: pathlib.Path) -> bool:
    """Whether a folder was written by `--format=hub`."""
    file = path / folders.CONFIG
    if not file.is_file() or not any((path / name).is_file() for name in folders.WEIGHTS):
        return False
    content = files.read_json(file)
    return isinstance(content, dict) and content.get("model_type") == OURS


def of_folder(path: pathlib.Path, text: str, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> Run:
    """The run in a folder that `--format=hub` wrote; `text` names it in errors."""
    try:
        found = published.read(path)
    except ValueError as error:
        raise WorldError(f"folder = {error}") from error
    imported = found.imported
    if step not in (None, imported.step):
        raise WorldError(f"step = {step}: expected {imported.step}, which {text} holds")
    config = with_own_tokenizer(configs.from_json(json.dumps(found.run), f"{path / folders.CONFIG} run"), path)
    cache.use(config.training.compilation_cache, only_if_none=True)
    try:
        conditions.check(config)
        convert.check_states(config, imported.config)
    except UsageError as error:
        raise WorldError(f"folder = {text}: {error}") from error
    tokenizer = get_tokenizer(config.tokenizer.name)
    problem = get_problem(config, tokenizer.vocab_size, **tables.of_run(config, tokenizer.vocab_size, path))
    mesh = mesh or make_mesh(MeshShape())
    model_config = get_model_config(config, problem.source.num_states, mesh.devices.flat[0].platform)
    shapes = jax.eval_shape(lambda: Transformer(model_config, rngs=nnx.Rngs(0)))
    places, _ = sharding.state_shardings(shapes, mesh)
    if jax.tree.map(np.shape, jax.tree.leaves(shapes)) != jax.tree.map(np.shape, jax.tree.leaves(imported.model)):
        raise WorldError(f"folder = {text}: its weights are not the network of its config.json")
    model = convert.placed(shapes, imported.model, places)
    return Run(path, config, imported.step, tokenizer, problem, model, mesh)


def with_own_tokenizer(config: Config, folder: pathlib.Path) -> Config:
    """The config with the tokenizer whose files lie in the published folder, where its tokenizer is one of files."""
    name = config.tokenizer.name
    change = changed.parts(name)
    base = name if change is None else change[0]
    if not base.startswith(hub.PREFIX) or not (folder / "tokenizer.json").is_file():
        return config
    ending = "" if change is None else f":{change[1]}={change[2]}"
    return configs.replace(config, {"tokenizer.name": f"{hub.PREFIX}{folder.absolute()}{ending}"})
