"""A trained model, for notebooks, scripts and the modes that work on a run: `dfm_jax.load("runs/NAME")`."""

import dataclasses
import functools
import os
import pathlib

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from dfm_jax import config as configs
from dfm_jax import sharding
from dfm_jax.data import Tokenizer, get_tokenizer
from dfm_jax.errors import UsageError, WorldError
from dfm_jax.models.transformer import Transformer
from dfm_jax.problem import Problem, get_model_config, get_problem
from dfm_jax.training.checkpoints import Checkpoints

# The part of a checkpoint that evaluation uses: the average where one was kept, else the parameters.
EVALUATED = ("ema", "model")


@dataclasses.dataclass(frozen=True)
class Run:
    """A model with all that is needed to use it. `model` is the average of the parameters where one was kept."""

    folder: pathlib.Path
    config: ConfigDict
    step: int  # updates applied
    tokenizer: Tokenizer
    problem: Problem
    model: Transformer
    mesh: jax.sharding.Mesh

    def logits(self, x_t: Array, t: Array) -> Array:
        """(B, L, S) float32 logits as the parametrisation emits them, from x_t (B, L) int32 and t (B,) in [0, 1]."""
        if x_t.ndim != 2 or t.shape != x_t.shape[:1]:
            raise ValueError(f"x_t {x_t.shape}, t {t.shape}: accepted (B, L) and (B,)")
        return self._logits(self.model, jnp.asarray(x_t, jnp.int32), jnp.asarray(t, jnp.float32))

    @functools.cached_property
    def _logits(self):
        problem = self.problem

        @jax.jit
        def logits(model: Transformer, x_t: Array, t: Array) -> Array:
            return model.logits(model(x_t, problem.network_time(t)), suppress=problem.suppress)

        return logits


def load(folder: str | os.PathLike, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> Run:
    """The run in `folder` at its newest intact checkpoint, or at `step`.

    The parameters go onto `mesh` by the rules of training; by default they are whole on every device, which suits
    sampling. Only what evaluation needs is read.

    Raises:
        WorldError: there is no run or no intact checkpoint, or its arrays are not the config's model.
    """
    folder = pathlib.Path(folder)
    saved = folder / "config.json"
    if not saved.is_file():
        raise WorldError(f"workdir={folder}: accepted the folder of a run, with its config.json")
    return load_with(configs.from_json(saved.read_text(), str(saved)), folder, step=step, mesh=mesh)


def load_with(
    config: ConfigDict, folder: pathlib.Path, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> Run:
    """`load` with a config in place of the saved one; it has to describe the same model."""
    tokenizer = get_tokenizer(config.tokenizer.name)
    problem = get_problem(config, tokenizer.vocab_size)
    mesh = mesh or sharding.make_mesh(sharding.MeshShape())
    model_config = get_model_config(config, problem.source.num_states, mesh.devices.flat[0].platform)
    shapes = jax.eval_shape(lambda: Transformer(model_config, rngs=nnx.Rngs(0)))
    places, _ = sharding.state_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )
    checkpoints = Checkpoints(folder / "checkpoints")
    if checkpoints.latest_step() is None:
        raise WorldError(f"workdir={folder}: accepted a run with a checkpoint; this one has none yet")
    at, model = checkpoints.restore_subtree(abstract, *EVALUATED, step=step)
    return Run(folder, config, at, tokenizer, problem, model, mesh)


def split_reference(text: str) -> tuple[pathlib.Path, int | None]:
    """'RUN' or 'RUN:STEP' as a folder and a step."""
    folder, colon, step = text.rpartition(":")
    if not colon:
        return pathlib.Path(text), None
    if not step.isdecimal():
        raise UsageError(f"config.checkpoint.restore_from={text}: accepted is RUN or RUN:STEP, STEP a number")
    return pathlib.Path(folder), int(step)
