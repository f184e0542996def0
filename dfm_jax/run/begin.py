"""Beginning a run, or continuing the one in its folder: what it starts from, and what it says about itself."""

import dataclasses
import os
import pathlib
import platform
import time
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax import config as configs
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.config import Config
from dfm_jax.data import Mixture, TokenStream, get_tokenizer
from dfm_jax.experiment import sizing
from dfm_jax.experiment.streams import count_tokens
from dfm_jax.models.transformer import count_parameters
from dfm_jax.run import restore
from dfm_jax.run.plan import Plan
from dfm_jax.run.preflight import restorable
from dfm_jax.runtime import processes
from dfm_jax.runtime.mesh import described
from dfm_jax.runtime.terminal import note, warn
from dfm_jax.training import resume
from dfm_jax.training.loop import Trainer
from dfm_jax.training.state import TrainState


def as_begun(config: Config, workdir: pathlib.Path) -> Config:
    """`config` as the run in `workdir` means it, if there is one with a checkpoint.

    Fields that are left to the text and the device are what they were found to be: a run that continues never finds
    them again. A run that was begun with a validation text of its own keeps it where the config names none, since it
    has trained on all of data.train.
    """
    if not processes.from_first(
        Checkpoints(workdir / "checkpoints").latest_step() is not None and (workdir / "config.json").is_file()
    ):
        return config
    begun = configs.load_run(workdir)
    changes: dict[str, Any] = {name: begun[name] for name in config.training.auto}
    if not config.data.valid and begun.data.valid:
        changes["data.valid"] = begun.data.valid
    return configs.replace(config, changes) if changes else config


def found_sizes(config: Config, mesh: jax.sharding.Mesh) -> tuple[Config, tuple[str, ...]]:
    """The config with the fields that are 'auto' found from its text, which is prepared for it, and the devices.

    Returns it with the reasons, a line each. Raises as `get_stream`.
    """
    if not config.training.auto:
        return config, ()
    tokenizer = processes.shared(lambda: get_tokenizer(config.tokenizer.name))
    train, valid = (count_tokens(config, field, tokenizer) for field in ("data.train", "data.valid"))
    device = mesh.devices.flat[0]
    cores = processes.from_first(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    machine = sizing.Device(device.platform, device.device_kind, mesh.size, cores)
    return sizing.settle(config, sizing.Text(train, valid), machine)


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


def facts(trainer: Trainer) -> dict[str, str]:
    """What the page of the run says of its network and its machine."""
    versions = {name: metadata.version(name) for name in ("jax", "flax", "numpy")}
    return {
        "parameters": f"{count_parameters(trainer.model_config):,}, products in {trainer.model_config.compute_dtype}",
        "devices": described(trainer.mesh),
        "versions": ", ".join(f"{k} {v}" for k, v in {"python": platform.python_version(), **versions}.items()),
        "this part begun": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def announce(trainer: Trainer, plan: Plan, workdir: pathlib.Path, step: int) -> None:
    """Says what is about to run, and why each choice is what it is."""
    if not processes.is_first():
        return
    config, mesh = trainer.config, trainer.mesh
    model = trainer.model_config
    sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    note(f"run {workdir}: {'begins' if step == 0 else f'continues from step {step}'}")
    note(f"model: {count_parameters(model):,} parameters, products in {model.compute_dtype}")
    note(f"devices: {described(mesh)}, mesh {sizes}")
    for line in plan.lines():
        note(line)
    for line in trainer.notes:
        note(f"sharding: {line}")
    if config.checkpoint.keep_last == 1:
        warn("checkpoint.keep_last=1: when the run has ended no checkpoint is left before its last, if that is damaged")
