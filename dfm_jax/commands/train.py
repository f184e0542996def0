"""`--mode=train`: begins a run, or continues the one in its folder; ends with its evaluation and its samples."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from dfm_jax import config as configs
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.command_line import Command
from dfm_jax.commands.evaluate import get_evaluator
from dfm_jax.config import Config
from dfm_jax.data import TokenStream, get_tokenizer
from dfm_jax.evaluation.evaluate import Evaluator
from dfm_jax.evaluation.report import curves as plots
from dfm_jax.experiment import tables
from dfm_jax.experiment.problem import get_problem
from dfm_jax.experiment.streams import get_stream
from dfm_jax.models import implementations
from dfm_jax.models.transformer import count_parameters
from dfm_jax.run import sizes
from dfm_jax.run.load import EVALUATED, Run, check_restorable, split_reference
from dfm_jax.runtime import files, processes, terminal
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.lock import RunLock
from dfm_jax.runtime.mesh import MeshShape, check_mesh, make_mesh
from dfm_jax.runtime.terminal import note, warn
from dfm_jax.training import resume
from dfm_jax.training.loop import Reports, Trainer, make_trainer, train
from dfm_jax.training.metrics import MetricsWriter
from dfm_jax.training.state import TrainState


def run(command: Command) -> int:
    config, workdir = command.config, command.workdir
    assert workdir is not None
    mesh = get_mesh(config)
    sizes.check(config, mesh, sizes.of_training(config, mesh))
    if processes.is_first():
        files.ensure_writable(workdir)
    processes.wait("workdir")
    with RunLock(workdir, process_index=jax.process_index()):
        earlier = Checkpoints(workdir / "checkpoints")
        check_continues(earlier, config, workdir)
        tokenizer = get_tokenizer(config.tokenizer.name)
        stream = get_stream(config, "data.train", tokenizer)
        validation = get_stream(config, "data.valid", tokenizer)
        sizes.check(config, mesh, sizes.likelihood(config, mesh, validation.num_blocks(config.model.length)))
        check_continues(earlier, config, workdir, stream)
        made_of = tables.of_run(config, tokenizer.vocab_size, workdir)
        problem = get_problem(config, tokenizer.vocab_size, **made_of)
        trainer = make_trainer(config, tokenizer.vocab_size, mesh, problem)
        for line in implementations.check(trainer.model_config, config.model.head, mesh):
            note_first(line)
        # Two at least while it runs: only the update after a checkpoint proves that it is good.
        kept = {"keep_last": max(config.checkpoint.keep_last, 2), "keep_every": config.checkpoint.keep_every}
        with Checkpoints(workdir / "checkpoints", **kept) as checkpoints:
            state = first_state(trainer, checkpoints)
            if processes.is_first():
                tables.keep(made_of, config, workdir)
                files.write_atomically(workdir / "config.json", configs.to_json(config))
            announce(trainer, stream, workdir, int(state.step))
            evaluator = get_evaluator(Run(workdir, config, 0, tokenizer, trainer.problem, state.best_model, mesh))
            wandb = {"project": "dfm_jax", "name": workdir.name, "config": config.to_dict()}
            with MetricsWriter(
                workdir,
                resume_step=int(state.step),
                wandb=wandb if config.logging.enable_wandb else None,
                enabled=processes.is_first(),
            ) as writer:
                state, finished = train(
                    trainer,
                    state,
                    stream,
                    checkpoints=checkpoints,
                    metadata={"config": config.to_dict(), "fingerprint": stream.fingerprint},
                    writer=writer,
                    reports=Reports(
                        evaluate=lambda state, _: evaluator.loss(state.best_model, validation),
                        generate=lambda state, step: evaluator.samples(state.best_model, step),
                    ),
                )
            if finished:
                checkpoints.prune(config.checkpoint.keep_last)
        if processes.is_first():
            plots.loss_curve(workdir)
        if finished:
            conclude(evaluator, config, state, workdir)
    return 0


def conclude(evaluator: Evaluator, config: Config, state: TrainState, workdir: pathlib.Path) -> None:
    """Evaluates a finished run, unless that was done before, and says where everything lies."""
    step = int(state.step)
    report = workdir / "eval" / f"step_{step}.json"
    if processes.from_first(report.exists()):
        note_first(f"run {workdir} is finished: {step} steps, evaluated")
    elif config.eval.elbo or config.eval.perplexity:
        evaluator.evaluate(state.best_model, step, elbo=config.eval.elbo, perplexity=config.eval.perplexity)
    if not processes.is_first():
        return
    if report.exists():
        print((workdir / "eval" / "report.md").read_text(encoding="utf-8"))
    where = {
        "loss curve": workdir / "loss.png",
        "metrics": workdir / "metrics.jsonl",
        "checkpoints": workdir / "checkpoints",
        "evaluation": workdir / "eval" / "report.md",
        "samples": workdir / "samples" / f"step_{step}.html",
    }
    print("\n".join(f"{name:12} {path}" for name, path in where.items() if path.exists()))
    print(f"next: {terminal.command({'mode': 'sample', 'workdir': workdir, 'prompt': 'The '})}")
    print(f"      {terminal.command({'mode': 'eval', 'workdir': workdir, 'config.eval.time_points': 1024})}")


def note_first(line: str) -> None:
    if processes.is_first():
        note(line)


def get_mesh(config: Config) -> jax.sharding.Mesh:
    """The config's mesh over all devices of all processes, checked against the batch and the model."""
    mesh = make_mesh(MeshShape(**config.mesh))
    check_mesh(
        mesh,
        batch_size=config.training.batch_size,
        grad_accum=config.training.grad_accum,
        n_heads=config.model.n_heads,
    )
    return mesh


def check_continues(
    earlier: Checkpoints, config: Config, workdir: pathlib.Path, stream: TokenStream | None = None
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
    origin = trainer.config.checkpoint.restore_from
    if not origin:
        return trainer.create()
    folder, step = split_reference(origin)
    source = Checkpoints(folder / "checkpoints")
    if not processes.from_first(source.latest_step() is not None):
        raise WorldError(f"config.checkpoint.restore_from={origin}: accepted the folder of a run with a checkpoint")
    check_restorable(source.metadata(step).get("config", {}), trainer.config, folder)
    state = trainer.create()
    at, model = source.restore_subtree(trainer.abstract.model, *EVALUATED, step=step)
    ema = None if state.ema is None else jax.tree.map(jax.numpy.copy, model)
    note(f"weights of {folder}, step {at}")
    return dataclasses.replace(state, model=model, ema=ema)


def announce(trainer: Trainer, stream: TokenStream, workdir: pathlib.Path, step: int) -> None:
    """Says what is about to run, and why each choice is what it is."""
    if not processes.is_first():
        return
    config, mesh = trainer.config, trainer.mesh
    model = trainer.model_config
    kind = mesh.devices.flat[0].device_kind
    sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    epoch = stream.num_tokens // config.model.length / config.training.batch_size
    note(f"run {workdir}: {'begins' if step == 0 else f'continues from step {step}'}")
    note(f"model: {count_parameters(model):,} parameters, products in {model.compute_dtype}")
    note(f"devices: {mesh.size} x {kind} in {jax.process_count()} processes, mesh {sizes}")
    note(
        f"data: {stream.manifest.corpus}, {stream.num_tokens:,} tokens of {stream.manifest.tokenizer}, "
        f"{epoch:,.1f} steps an epoch"
    )
    for line in trainer.notes:
        note(f"sharding: {line}")
    if config.checkpoint.keep_last == 1:
        warn("checkpoint.keep_last=1: when the run has ended no checkpoint is left before its last, if that is damaged")
