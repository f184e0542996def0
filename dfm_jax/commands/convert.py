"""`--mode=import` and `--mode=export`: a run from another program's checkpoint, and a checkpoint for other programs."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dfm_jax import config as configs
from dfm_jax import files, sharding
from dfm_jax.command_line import Command
from dfm_jax.config import Config
from dfm_jax.data import vocabulary_size
from dfm_jax.errors import UsageError, WorldError
from dfm_jax.experiment import conditions
from dfm_jax.lock import RunLock
from dfm_jax.logging import note
from dfm_jax.models import pytorch
from dfm_jax.models.transformer import count_parameters
from dfm_jax.run import load_with
from dfm_jax.training import optimizer
from dfm_jax.training.checkpoints import Checkpoints
from dfm_jax.training.loop import make_trainer
from dfm_jax.training.state import TrainState

FORMATS = ("safetensors", "pytorch")
# What the tensors of a checkpoint tell, under the config's names.
ARCHITECTURE = ("hidden_size", "cond_dim", "n_blocks", "n_heads", "mlp_ratio")


def run(command: Command) -> int:
    return import_run(command) if command.mode == "import" else export_run(command)


def import_run(command: Command) -> int:
    """Makes a run folder of a checkpoint file; `eval`, `sample` and `train` then take it."""
    file = command.operands["from"]
    if not file:
        raise UsageError("from=(missing): accepted is --from=FILE, a checkpoint.pth of the reference or a .safetensors")
    if not pathlib.Path(file).is_file():
        raise WorldError(f"from={file}: accepted is a file that exists")
    config = command.config
    imported = read(file, config, config_was_given=command.config_was_given)
    config = adopt(config, imported.config, config_was_given=command.config_was_given)
    conditions.check(config, command.mode)
    workdir = command.workdir or pathlib.Path("runs") / pathlib.Path(file).stem
    files.ensure_writable(workdir)
    with RunLock(workdir):
        folder = workdir / "checkpoints"
        if Checkpoints(folder).latest_step() is not None:
            raise WorldError(f"workdir={workdir}: accepted is a folder without checkpoints; this one has some")
        trainer = make_trainer(config, vocabulary_size(config.tokenizer.name), sharding.make_mesh(sharding.MeshShape()))
        state = to_state(trainer.create(), imported, config)
        with Checkpoints(folder, keep_last=config.checkpoint.keep_last) as checkpoints:
            checkpoints.save(imported.step, state, metadata={"config": config.to_dict()}, block=True)
        files.write_atomically(workdir / "config.json", configs.to_json(config))
    note(
        f"{file}: step {imported.step}, {count_parameters(imported.config):,} parameters, "
        f"{config.flow.source_distribution} source; now a run in {workdir}"
    )
    note(f"next: python main.py --mode=eval --workdir={workdir}")
    return 0


def read(file: str, config: Config, *, config_was_given: bool) -> pytorch.ImportedCheckpoint:
    """The file's training state; the architecture is the file's, and a config that was given must agree with it."""
    # What no tensor tells is the config's, or without one the published model's (in safetensors the file's own).
    options = {name: config.model[name] for name in (*ARCHITECTURE, "length", "dropout")} if config_was_given else {}
    reader = pytorch.read_weights if file.endswith(".safetensors") else pytorch.read_checkpoint
    try:
        return reader(file, options)
    except ValueError as error:
        raise WorldError(f"from={error}") from error


def adopt(config: Config, model: Any, *, config_was_given: bool) -> Config:
    """The config with what the imported model tells: its architecture, and where it can the source."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(model):
        if field.name in config.model and field.name not in ("compute_dtype", "residual_dtype", "attention", "remat"):
            changes[f"model.{field.name}"] = getattr(model, field.name)
    try:
        source = pytorch.infer_source(model.vocab_size)
    except ValueError as error:
        source = config.flow.source_distribution
        if not config_was_given:
            raise UsageError(f"config=(missing): {' '.join(str(error).split())}") from error
    if config_was_given and config.flow.source_distribution != source:
        raise UsageError(
            f"config.flow.source_distribution={config.flow.source_distribution}: accepted is {source}, "
            f"as the file's {model.vocab_size} token states say"
        )
    changes["flow.source_distribution"] = source
    extra = source == "mask"
    vocab_size = model.vocab_size - extra
    if vocabulary_size(config.tokenizer.name) != vocab_size:
        known = {vocabulary_size(name): name for name in ("gpt2", "bytes")}
        # Without a tokenizer that fits, the model is used on token ids.
        changes["tokenizer.name"] = known.get(vocab_size, f"ids:{vocab_size}")
    # The reference scored and sampled with the mask's logit, so its numbers need it.
    changes["model.suppress_mask_logit"] = False
    return configs.replace(config, changes)


def to_state(blank: TrainState, imported: pytorch.ImportedCheckpoint, config: Config) -> TrainState:
    """`blank` with the imported weights, moments and step, on the devices of `blank`."""

    def place(like: Any, value: Any) -> Any:
        # Leaf by leaf: the imported module may differ in what is no array, such as what is recomputed.
        places, structure = jax.tree.flatten(like)
        values = zip(places, jax.tree.leaves(value), strict=True)
        return structure.unflatten(jax.device_put(jnp.asarray(b, a.dtype), a.sharding) for a, b in values)

    model = place(blank.model, imported.model)
    opt_state = blank.opt_state
    if config.optim.name == "adamw":
        old: Any = optimizer.get_moments(opt_state)
        moments = optax.ScaleByAdamState(
            count=jax.device_put(jnp.asarray(imported.count, old.count.dtype), old.count.sharding),
            mu=place(old.mu, imported.mu),
            nu=place(old.nu, imported.nu),
        )
        opt_state = optimizer.set_moments(opt_state, moments)
    return TrainState(
        step=jax.device_put(jnp.asarray(imported.step, jnp.int32), blank.step.sharding),
        model=model,
        ema=None if blank.ema is None else jax.tree.map(jnp.copy, model),
        opt_state=opt_state,
        bad_steps=blank.bad_steps,
    )


def export_run(command: Command) -> int:
    """Writes a checkpoint's weights: as safetensors (what evaluation uses), or as the reference's training file."""
    kind = command.operands["format"] or "safetensors"
    if kind not in FORMATS:
        raise UsageError(f"format={kind}: accepted is one of {', '.join(FORMATS)}")
    config, workdir, step = command.config, command.workdir, command.operands["step"]
    assert workdir is not None
    suffix = "pth" if kind == "pytorch" else "safetensors"
    target = command.operands["output"]
    if kind == "safetensors":
        run = load_with(config, workdir, step=step)
        path = output_file(target, workdir, run.step, suffix)
        pytorch.write_weights(path, run.model, config=run.model.config, step=run.step)
        note(f"{path}: the weights of step {run.step}")
        return 0
    trainer = make_trainer(config, vocabulary_size(config.tokenizer.name), sharding.make_mesh(sharding.MeshShape()))
    for field, ours in (("parametrization", "leave_one_out"), ("time_input", "kappa")):
        if config.model[field] == ours:
            raise UsageError(
                f"format=pytorch: the reference would compute other numbers with model.{field}={ours}; "
                "accepted is --format=safetensors"
            )
    try:
        pytorch.check_exportable(trainer.model_config)
        optimizer.get_moments(trainer.abstract.opt_state)
    except ValueError as error:
        raise UsageError(f"format=pytorch: {error}") from error
    at, state = Checkpoints(workdir / "checkpoints").restore(trainer.abstract, step)
    moments: Any = optimizer.get_moments(state.opt_state)
    hyperparameters = {name: config.optim[name] for name in ("beta1", "beta2", "eps", "weight_decay")}
    path = output_file(target, workdir, at, suffix)
    pytorch.write_checkpoint(
        path,
        state.model,
        config=trainer.model_config,
        step=at,
        mu=moments.mu,
        nu=moments.nu,
        count=int(moments.count),
        hyperparameters=hyperparameters | {"lr": trainer.learning_rate(max(at, 1))},
    )
    note(f"{path}: weights and moments of step {at}, in the reference's format")
    return 0


def output_file(target: str | None, workdir: pathlib.Path, step: int, suffix: str) -> pathlib.Path:
    path = pathlib.Path(target) if target else workdir / "export" / f"step_{step}.{suffix}"
    if path.is_dir():
        raise UsageError(f"output={path}: accepted is the name of a file; this is a folder")
    files.ensure_writable(path.parent, field="output")
    return path
