"""A trained model, for notebooks, scripts and the modes that work on a run: `dfm_jax.load("runs/NAME")`."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dfm_jax import config as configs
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.config import NETWORK, Config
from dfm_jax.data import Tokenizer, get_tokenizer
from dfm_jax.evaluation.prompts import Prompt
from dfm_jax.experiment import tables
from dfm_jax.experiment.problem import Problem, get_model_config, get_problem
from dfm_jax.models import sharding
from dfm_jax.models.transformer import Transformer
from dfm_jax.runtime import cache, compiler
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.mesh import MeshShape, make_mesh
from dfm_jax.runtime.rng import noise_key

# The part of a checkpoint that evaluation uses: the average where one was kept, else the parameters.
EVALUATED = ("ema", "model")
# No fine-tuning makes these right: with another tokenizer or number of heads the same rows and columns are others.
NEVER_CHANGED = ("tokenizer.name", "model.n_heads")


@dataclasses.dataclass(frozen=True)
class Run:
    """A model with all that is needed to use it. `model` is the average of the parameters where one was kept."""

    folder: pathlib.Path
    config: Config
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

    def sample(self, num: int = 4, *, prompt: str | None = None, trim: bool = False, **options: Any) -> list[str]:
        """`num` texts. prompt: a beginning, or a text with <gap:N>; trim: end at the first end of text.

        options: as in `sample_tokens`.
        """
        from dfm_jax.evaluation.generation import to_text
        from dfm_jax.evaluation.prompts import parse_prompt

        length = options.get("length") or self.config.model.length
        prompts = () if prompt is None else (parse_prompt(prompt, self.tokenizer, length),)
        tokens = self.sample_tokens(num, prompts=prompts, **options)
        return [to_text(row, self.tokenizer, trim=trim) for row in tokens]

    def sample_tokens(
        self,
        num: int = 4,
        *,
        steps: int | None = None,
        method: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        length: int | None = None,
        batch_size: int | None = None,
        prompts: Sequence[Prompt] = (),
    ) -> np.ndarray:
        """(num, L) int32 token ids. What is None is as the config's sampling group says.

        Sequence i depends on (seed, i) alone, not on num, batch_size or the mesh. prompts: used in turn.
        """
        from dfm_jax.evaluation.generation import generate
        from dfm_jax.evaluation.settings import EvaluationSettings

        changes = {"steps": steps, "method": method, "temperature": temperature, "top_p": top_p, "seed": seed}
        settings = dataclasses.replace(
            EvaluationSettings.from_config(self.config, self.tokenizer.vocab_size).sampling,
            **{name: value for name, value in {**changes, "length": length}.items() if value is not None},
        )
        devices = self.mesh.size
        rows = batch_size or min(self.config.sampling.batch_size, -(-num // devices)) * devices
        return generate(
            self.model,
            self.problem,
            settings,
            num,
            batch_size=rows,
            prompts=prompts,
            mesh=self.mesh,
            deterministic=self.config.training.deterministic,
        )

    def likelihood(self, token_blocks: np.ndarray, *, time_points: int | None = None, seed: int = 0):
        """Bounds on -log p of blocks (n, L) int32: {name: LikelihoodResult}, nats per token with standard error."""
        from dfm_jax.evaluation.likelihood import estimate_likelihood

        blocks = np.asarray(token_blocks, np.int32)
        if blocks.ndim != 2 or blocks.shape[1] > self.config.model.length:
            raise ValueError(f"token_blocks {blocks.shape}: accepted (n, L) with L <= {self.config.model.length}")
        rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        size = -(-min(len(blocks), self.config.eval.batch_size) // rows) * rows
        padded = np.concatenate([blocks, np.zeros((-len(blocks) % size, blocks.shape[1]), np.int32)])
        weights = (np.arange(len(padded)) < len(blocks)).astype(np.float32)
        batches = [(padded[i : i + size], weights[i : i + size]) for i in range(0, len(padded), size)]
        return estimate_likelihood(
            self.model,
            self.problem,
            batches,
            key=noise_key(seed, "likelihood"),
            time_points=time_points or self.config.eval.time_points,
            mesh=self.mesh,
            deterministic=self.config.training.deterministic,
            count_bytes=lambda row: len(self.tokenizer.decode_bytes(row)),
        )

    @functools.cached_property
    def _logits(self):
        problem = self.problem

        def logits(model: Transformer, x_t: Array, t: Array) -> Array:
            return model.logits(model(x_t, problem.network_time(t)), suppress=problem.suppress)

        return compiler.jit(
            logits,
            mesh=self.mesh,
            communicates=sharding.splits_parameters(self.mesh),
            deterministic=self.config.training.deterministic,
        )


def load(folder: str | os.PathLike, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> Run:
    """The run in `folder` at its newest intact checkpoint, or at `step`.

    The parameters go onto `mesh` by the rules of training; by default they are whole on every device, which suits
    sampling. Only what evaluation needs is read.

    Raises:
        WorldError: there is no run or no intact checkpoint, or its arrays are not the config's model.
    """
    folder = pathlib.Path(folder)
    if not (folder / "config.json").is_file():
        raise WorldError(f"workdir={folder}: accepted the folder of a run, with its config.json")
    return load_with(configs.load_run(folder), folder, step=step, mesh=mesh)


def load_with(
    config: Config, folder: pathlib.Path, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> Run:
    """`load` with a config in place of the saved one; it has to describe the same model.

    What it compiles is kept on disk as `training.compilation_cache` says, unless this process has a cache already.

    Raises:
        UsageError: a field of `NETWORK` is not what the checkpoint was trained with.
    """
    cache.use(config.training.compilation_cache, only_if_none=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    if checkpoints.latest_step() is None:
        raise WorldError(f"workdir={folder}: accepted a run with a checkpoint; this one has none yet")
    check_same_network(checkpoints.metadata(step).get("config", {}), config, folder)
    tokenizer = get_tokenizer(config.tokenizer.name)
    problem = get_problem(config, tokenizer.vocab_size, **tables.of_run(config, tokenizer.vocab_size, folder))
    mesh = mesh or make_mesh(MeshShape())
    model_config = get_model_config(config, problem.source.num_states, mesh.devices.flat[0].platform)
    shapes = jax.eval_shape(lambda: Transformer(model_config, rngs=nnx.Rngs(0)))
    places, _ = sharding.state_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )
    at, model = checkpoints.restore_subtree(abstract, *EVALUATED, step=step)
    return Run(folder, config, at, tokenizer, problem, model, mesh)


def check_same_network(saved: dict[str, dict[str, Any]], config: Config, folder: pathlib.Path) -> None:
    """UsageError where a field of `NETWORK` differs from that of the checkpoint's config `saved`."""
    for field, (trained, given) in other_network(saved, config).items():
        raise UsageError(f"config.{field} = {given}: expected {trained}, which {folder} was trained with")


def check_restorable(saved: dict[str, dict[str, Any]], config: Config, folder: pathlib.Path) -> None:
    """UsageError where the network of `config`, which starts from a checkpoint of config `saved`, means another thing.

    Fields of `NETWORK` that `checkpoint.restore_changed` names may differ, all but those of `NEVER_CHANGED`.
    """
    named = config.checkpoint.restore_changed
    for field in named:
        if field not in NETWORK or field in NEVER_CHANGED:
            allowed = [name for name in NETWORK if name not in NEVER_CHANGED]
            raise UsageError(f"config.checkpoint.restore_changed = {field}: expected some of {', '.join(allowed)}")
    refused = {field: pair for field, pair in other_network(saved, config).items() if field not in named}
    if not refused:
        return
    fields = ", ".join(f"config.{field} = {given}" for field, (_, given) in refused.items())
    trained = ", ".join(str(value) for value, _ in refused.values())
    line = f"{fields}: expected {trained}, which {folder} was trained with"
    if never := [field for field in refused if field in NEVER_CHANGED]:
        raise UsageError(f"{line} ({', '.join(never)} cannot change)")
    raise UsageError(f"{line}, or --config.checkpoint.restore_changed={','.join([*named, *refused])} to change that")


def other_network(saved: dict[str, dict[str, Any]], config: Config) -> dict[str, tuple[Any, Any]]:
    """{field: (value in `saved`, value in `config`)} of the fields of `NETWORK` that differ.

    What the checkpoint does not have is newer than it, and was then what its default is.
    """
    was = configs.modern(configs.flatten(saved))
    if not was:
        return {}
    if config.flow.source_distribution != "mask":
        was.pop("model.suppress_mask_logit", None)  # there is none to suppress
    masked = [field for field in NETWORK if field != "model.suppress_mask_logit" or field in was]
    trained = {field: was.get(field, configs.TABLE[field].default) for field in masked}
    return {field: (value, config[field]) for field, value in trained.items() if config[field] != value}


def split_reference(text: str) -> tuple[pathlib.Path, int | None]:
    """'RUN' or 'RUN:STEP' as a folder and a step. A folder whose own name ends in ':' and a number is that folder."""
    folder, colon, step = text.rpartition(":")
    if not colon or pathlib.Path(text).is_dir():
        return pathlib.Path(text), None
    if not (step.isascii() and step.isdigit()):
        raise UsageError(
            f"config.checkpoint.restore_from = {text}: there is no such folder; expected RUN or RUN:STEP, STEP a number"
        )
    return pathlib.Path(folder), int(step)
