"""Beginning a run, or continuing the one in its folder: what it starts from, and what it says about itself."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.config import Config
from dfm_jax.data import Mixture, RecordStream, TokenStream
from dfm_jax.models.transformer import count_parameters
from dfm_jax.run import restore
from dfm_jax.run.preflight import restorable
from dfm_jax.runtime import processes
from dfm_jax.runtime.terminal import note, warn
from dfm_jax.training import resume
from dfm_jax.training.loop import Trainer
from dfm_jax.training.state import TrainState


def check_continues(
    earlier: Checkpoints, config: Config, workdir: pathlib.Path, stream: TokenStream | Mixture | None = None
) -> None:
    """WorldError where the folder holds the checkpoints of another run than `config` on `stream`."""
    if not processes.from_first(earlier.latest_step() is not None):
        return
    saved = earlier.metadata()
    notes = resume.check(
        saved.get("config", {}),
        config.to_dict(),
        workdir=workdir,
        saved_fingerprint=saved.get("fingerprint"),
        fingerprint=None if stream is None else stream.fingerprint,
        done=earlier.latest_step() or 0,
    )
    if stream is None and processes.is_first():
        for line in notes:
            note(f"changed since the last checkpoint: {line}")


def first_state(trainer: Trainer, checkpoints: Checkpoints) -> TrainState:
    """The newest intact checkpoint's state, or that of step 0, with another run's weights if the config says so.

    Process 0 says which, for all: on a network's disk another one may not see the same files yet.
    """
    if processes.from_first(checkpoints.latest_step() is not None):
        state = checkpoints.restore(trainer.abstract)[1]
        # A count that an earlier version saved amid a bad streak would end the run at its first bad update.
        return dataclasses.replace(state, bad_steps=jnp.zeros((), jnp.int32, device=state.bad_steps.sharding))
    origin = restorable(trainer.config)
    if origin is None:
        return trainer.create()
    state, lines = restore.take(origin, trainer.create())
    for line in lines:
        note(line)
    return state


def announce(trainer: Trainer, stream: TokenStream | Mixture, workdir: pathlib.Path, step: int) -> None:
    """Says what is about to run, and why each choice is what it is."""
    if not processes.is_first():
        return
    config, mesh = trainer.config, trainer.mesh
    model = trainer.model_config
    kind = mesh.devices.flat[0].device_kind
    sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    note(f"run {workdir}: {'begins' if step == 0 else f'continues from step {step}'}")
    note(f"model: {count_parameters(model):,} parameters, products in {model.compute_dtype}")
    note(f"devices: {mesh.size} x {kind} in {jax.process_count()} processes, mesh {sizes}")
    for line in mixed(stream, config, step) if isinstance(stream, Mixture) else [described(stream, config)]:
        note(f"data: {line}")
    for line in trainer.notes:
        note(f"sharding: {line}")
    if config.checkpoint.keep_last == 1:
        warn("checkpoint.keep_last=1: when the run has ended no checkpoint is left before its last, if that is damaged")


def described(stream: TokenStream, config: Config) -> str:
    """One corpus: its name, its tokens, the updates of an epoch."""
    epoch = stream.num_tokens // config.model.length
    records = ""
    if isinstance(stream, RecordStream):
        epoch, records = stream.num_blocks(config.model.length), f"{stream.num_records:,} records, "
    return (
        f"{stream.manifest.corpus}, {records}{stream.num_tokens:,} tokens of {stream.manifest.tokenizer}, "
        f"{epoch / config.training.batch_size:,.1f} steps an epoch"
    )


def mixed(mixture: Mixture, config: Config, step: int) -> list[str]:
    """A line for each corpus of a mixture: its share of the blocks, its epochs so far and at the end of the run."""
    training = {"length": config.model.length, "batch_size": config.training.batch_size, "seed": config.training.seed}
    now, end = (mixture.epochs(at, **training) for at in (step, config.optim.n_iters))
    weights = next((w for start, w in reversed(mixture.changes) if start <= step), mixture.weights)
    return [
        f"{float(weight / sum(weights)):.2%} of the blocks from {described(stream, config)}; "
        f"{so_far:,.2f} epochs so far, {in_all:,.2f} at step {config.optim.n_iters:,}"
        for weight, stream, so_far, in_all in zip(weights, mixture.streams, now, end, strict=True)
    ]
