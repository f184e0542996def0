"""A run from another program's checkpoint, and a run's checkpoint for other programs."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dfm_jax import config as configs
from dfm_jax import optim
from dfm_jax.checkpoints import pytorch
from dfm_jax.checkpoints.layouts import LAYOUTS, Export, layout_of
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.config import NETWORK, TABLE, Config
from dfm_jax.data import vocabulary_size
from dfm_jax.data.tokenizers import hf_files
from dfm_jax.experiment import conditions
from dfm_jax.models.transformer import TransformerConfig, count_parameters
from dfm_jax.run.begin import as_begun
from dfm_jax.run.load import load_with, placed
from dfm_jax.runtime import files
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.lock import RunLock
from dfm_jax.runtime.mesh import MeshShape, make_mesh
from dfm_jax.runtime.terminal import note
from dfm_jax.training.loop import make_trainer
from dfm_jax.training.state import TrainState

# What the tensors of a checkpoint tell, under the config's names.
ARCHITECTURE = ("hidden_size", "cond_dim", "n_blocks", "n_heads", "mlp_ratio")
# What tensors or metadata may tell besides, and the config must not contradict.
OF_THE_MODEL = (*ARCHITECTURE, "length", "dropout", "time_scale", "time_conditioning", "qk_norm", "tie_embeddings")


def import_weights(
    file: str, config: Config, workdir: pathlib.Path | None = None, *, config_was_given: bool
) -> pathlib.Path:
    """Makes a run's folder of a checkpoint file; what works on a run then takes it. Returns the folder.

    config_was_given: whether every field of the config was meant, or those alone that are not the published recipe's.
    workdir: None is runs/NAME, with the name of the file.

    Raises:
        UsageError: the file and the config do not agree. WorldError: the file cannot be read, or the folder has
            checkpoints already.
    """
    if not pathlib.Path(file).is_file():
        raise WorldError(f"from = {file}: expected a file that exists")
    imported = read(file, config, config_was_given=config_was_given)
    config = adopt(config, imported, config_was_given=config_was_given)
    workdir = workdir or pathlib.Path("runs") / pathlib.Path(file).stem
    make_run(workdir, config, imported, file)
    return workdir


def make_run(workdir: pathlib.Path, config: Config, imported: pytorch.ImportedCheckpoint, origin: str) -> None:
    """Writes a run of `config` with the imported state into `workdir`. origin: where from, for the line that says so.

    Raises:
        UsageError: fields of the config do not go together. WorldError: the folder has checkpoints, or cannot be
            written to.
    """
    conditions.check(config, "import")
    files.ensure_writable(workdir)
    with RunLock(workdir):
        folder = workdir / "checkpoints"
        if Checkpoints(folder).latest_step() is not None:
            raise WorldError(f"workdir = {workdir}: already has checkpoints; expected a folder without")
        trainer = make_trainer(config, vocabulary_size(config.tokenizer.name), make_mesh(MeshShape()))
        state = to_state(trainer.create(), imported, config)
        with Checkpoints(folder, keep_last=config.checkpoint.keep_last) as checkpoints:
            metadata = {"config": config.to_dict(), "origin": origin}
            checkpoints.save(imported.step, state, metadata=metadata, block=True)
        hf_files.keep(config.tokenizer.name, workdir)
        files.write_atomically(workdir / "config.json", configs.to_json(config))
    note(
        f"{origin}: step {imported.step}, {count_parameters(imported.config):,} parameters, "
        f"{config.flow.source_distribution} source, tokenizer {config.tokenizer.name}; now a run in {workdir}"
    )


def read(file: str, config: Config, *, config_was_given: bool) -> pytorch.ImportedCheckpoint:
    """The file's training state; the architecture is the file's, and a config that was given must agree with it."""
    # What no tensor tells is the config's, or without one the published model's (in safetensors the file's own).
    default = Config().model
    names = (*ARCHITECTURE, "length", "dropout")
    options = {name: config.model[name] for name in names if config_was_given or config.model[name] != default[name]}
    try:
        return layout_of(file).read(file, options)
    except OSError as error:
        raise WorldError(f"from = {file}: expected a file that can be read ({error.strerror})") from error
    except ValueError as error:
        raise WorldError(f"from = {error}") from error


def adopt(config: Config, imported: pytorch.ImportedCheckpoint, *, config_was_given: bool) -> Config:
    """The config with what the file tells: architecture, source, tokenizer, what its numbers mean.

    Raises:
        UsageError: a field that was given, in a config's file or beside it, says something else; or nothing tells
            the source.
    """
    changes: dict[str, Any] = {}

    def take(field: str, value: Any, why: str) -> None:
        given, stated = config[field], TABLE[field]
        if not isinstance(value, (int, float) if stated.kind is float else stated.kind):
            raise UsageError(f"from: {field} = {value!r} in the file: expected {stated.kind.__name__}")
        if given != value and (config_was_given or given != stated.default):
            raise UsageError(f"config.{field} = {given}: expected {value}, {why}")
        changes[field] = value

    model = imported.config
    for name in OF_THE_MODEL:
        take(f"model.{name}", getattr(model, name), "as the file says")
    # The reference scored and sampled with the mask's logit, so its numbers need it.
    changes["model.suppress_mask_logit"] = False
    for field in NETWORK:
        if field in imported.network:
            if field == "model.suppress_mask_logit":
                changes[field] = imported.network[field]
            else:
                take(field, imported.network[field], "as the file says")
    if not config_was_given and "flow.source_distribution" not in imported.network:
        try:
            source = pytorch.infer_source(model.vocab_size)
        except ValueError as error:
            raise UsageError(f"config=(missing): {' '.join(str(error).split())}") from error
        take("flow.source_distribution", source, f"as the file's {model.vocab_size} token states say")
    config = configs.replace(config, changes)
    check_states(config, model)
    return config


def check_states(config: Config, model: TransformerConfig) -> None:
    """UsageError where tokenizer and source of the config have another number of token states than the file."""
    states, tokenizer, source = model.vocab_size, config.tokenizer.name, config.flow.source_distribution
    masked = source == "mask"
    if vocabulary_size(tokenizer) + masked == states:
        return

    def tokenizers(size: int) -> str:
        return " or ".join([*(name for name in ("gpt2", "bytes") if vocabulary_size(name) == size), f"ids:{size}"])

    expected = f"{tokenizers(states - masked)} with the {source} source"
    if vocabulary_size(tokenizer) + (not masked) == states:
        expected += f", or flow.source_distribution={'uniform' if masked else 'mask'} with {tokenizer}"
    raise UsageError(f"config.tokenizer.name = {tokenizer}: expected {expected}, as the file has {states} token states")


def to_state(blank: TrainState, imported: pytorch.ImportedCheckpoint, config: Config) -> TrainState:
    """`blank` with the imported weights, moments and step, on the devices of `blank`."""

    def place(like: Any, value: Any) -> Any:
        return placed(like, value, jax.tree.map(lambda leaf: leaf.sharding, like))

    model = place(blank.model, imported.model)
    opt_state = blank.opt_state
    if config.optim.name == "adamw":
        old: Any = optim.get_moments(opt_state)
        moments = optax.ScaleByAdamState(
            count=jax.device_put(jnp.asarray(imported.count, old.count.dtype), old.count.sharding),
            mu=place(old.mu, imported.mu),
            nu=place(old.nu, imported.nu),
        )
        opt_state = optim.set_moments(opt_state, moments)
    return TrainState(
        step=jax.device_put(jnp.asarray(imported.step, jnp.int32), blank.step.sharding),
        model=model,
        ema=None if blank.ema is None else jax.tree.map(jnp.copy, model),
        opt_state=opt_state,
        bad_steps=blank.bad_steps,
    )


def export(
    config: Config, workdir: pathlib.Path, *, step: int | None = None, kind: str = "", output: str | None = None
) -> pathlib.Path:
    """Writes a run's checkpoint in another program's format: its weights, or all that training goes on from.

    kind: a name of `LAYOUTS`, '' for the first. output: the file; None is RUN/export/step_N.*. Returns the file.

    Raises:
        UsageError: the format cannot hold this run, or `output` is a folder.
        WorldError: there is no such checkpoint, or the file cannot be written.
    """
    config = as_begun(config, workdir)
    kind = kind or next(iter(LAYOUTS))
    if kind not in LAYOUTS:
        raise UsageError(f"format = {kind}: expected one of {', '.join(LAYOUTS)}, hub, mdlm")
    layout = LAYOUTS[kind]
    for field, value in layout.only.items():
        if config[field] != value:
            raise UsageError(
                f"format={kind}: the reference would compute other numbers with {field}={config[field]}; "
                "expected --format=safetensors"
            )
    where = pathlib.Path(output) if output else workdir / "export"
    if output and where.is_dir():
        raise UsageError(f"output = {where}: expected the name of a file; this is a folder")
    files.ensure_writable(where.parent if output else where, field="output")
    holder = of_training(config, workdir, step, kind) if layout.training else of_weights(config, workdir, step)
    path = where if output else where / f"step_{holder.step}.{layout.suffix}"
    layout.write(path, holder)
    note(f"{path}: {layout.holds} of step {holder.step}")
    return path


def of_weights(config: Config, workdir: pathlib.Path, step: int | None) -> Export:
    """The weights that evaluation uses."""
    run = load_with(config, workdir, step=step)
    return Export(run.model, run.model.config, run.step, network(config))


def of_training(config: Config, workdir: pathlib.Path, step: int | None, kind: str) -> Export:
    """Weights, moments and step; UsageError where the format `kind` has no place for them."""
    trainer = make_trainer(config, vocabulary_size(config.tokenizer.name), make_mesh(MeshShape()))
    try:
        LAYOUTS[kind].check(trainer.model_config)
        optim.get_moments(trainer.abstract.opt_state)
    except ValueError as error:
        raise UsageError(f"format={kind}: {error}") from error
    at, state = Checkpoints(workdir / "checkpoints").restore(trainer.abstract, step)
    hyperparameters = {name: config.optim[name] for name in ("beta1", "beta2", "eps", "weight_decay")}
    return Export(
        state.model,
        trainer.model_config,
        at,
        network(config),
        optim.get_moments(state.opt_state),
        hyperparameters | {"lr": trainer.learning_rate(max(at, 1))},
    )


def network(config: Config) -> dict[str, Any]:
    """What the numbers of the config's network mean, by its fields."""
    return {field: config[field] for field in NETWORK}
