"""Training a run: begun or continued in its folder, to its last step, its evaluation and its samples."""

import pathlib

import jax

from dfm_jax import config as configs
from dfm_jax.checkpoints.published.folder import of_ours
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.config import Config
from dfm_jax.data import Mixture, RecordStream
from dfm_jax.data.tokenizers import hf_files
from dfm_jax.evaluation import baselines
from dfm_jax.evaluation.evaluate import Evaluator
from dfm_jax.evaluation.report import curves as plots
from dfm_jax.evaluation.report.run_page import PAGE, RunPage, keep_facts
from dfm_jax.experiment import conditions, streams, tables
from dfm_jax.experiment.problem import get_problem
from dfm_jax.models.transformer import Transformer
from dfm_jax.run import devices, preflight, sizes
from dfm_jax.run.begin import announce, as_begun, check_continues, facts, first_state, found_sizes
from dfm_jax.run.evaluate import get_evaluator
from dfm_jax.run.load import EVALUATED, Run, used_step
from dfm_jax.run.plan import Plan
from dfm_jax.runtime import files, processes, terminal
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.lock import RunLock
from dfm_jax.runtime.signals import GracefulStop
from dfm_jax.runtime.terminal import note
from dfm_jax.training.loop import Reports, Trainer, make_trainer
from dfm_jax.training.loop import train as update
from dfm_jax.training.metrics import MetricsWriter
from dfm_jax.training.state import TrainState


def train(config: Config, workdir: pathlib.Path, stop: GracefulStop | None = None) -> bool:
    """Trains a checked config in `workdir` to `optim.n_iters` and evaluates it; what is done there already stays.

    stop: what ends it early, by default SIGTERM and SIGINT. Returns whether it is finished: False after a signal, where
    the same call continues.

    Raises:
        UsageError: the config does not fit the devices, or something that it names.
        WorldError: the folder holds another run, something that the run needs is not there, or its updates are not
            finite.
    """
    if of_ours(workdir) is not None:
        raise WorldError(
            f"workdir = {workdir}: expected the folder of a run; --mode=import --from={workdir} makes one of what was "
            "exported there"
        )
    given = as_begun(config, workdir)
    config, reasons = found_sizes(given, devices.any_mesh(given))
    if reasons:
        conditions.check(config, "train")
        if processes.is_first():
            note("from the text and the device (each can be set: --config.FIELD=VALUE; docs/own_text.md):")
            for line in reasons:
                note(f"  {line}")
    mesh = devices.training_mesh(config)
    preflight.fits(config, mesh, sizes.of_training(config, mesh))
    preflight.writable(workdir, "workdir")
    with RunLock(workdir, process_index=jax.process_index()):
        earlier = Checkpoints(workdir / "checkpoints")
        check_continues(earlier, config, workdir)
        found = preflight.training(config, workdir, mesh)
        tokenizer, stream = found.tokenizer, found.train
        check_continues(earlier, config, workdir, stream)
        if not found.evaluates and processes.from_first((earlier.latest_step() or 0) >= config.optim.n_iters):
            say_finished(config, workdir)
            return True
        made_of = tables.of_run(config, tokenizer.vocab_size, workdir)
        problem = get_problem(config, tokenizer.vocab_size, **made_of)
        trainer = make_trainer(config, tokenizer.vocab_size, mesh, problem)
        # Two at least while it runs: only the update after a checkpoint proves that it is good.
        kept = {"keep_last": max(config.checkpoint.keep_last, 2), "keep_every": config.checkpoint.keep_every}
        with Checkpoints(workdir / "checkpoints", **kept) as checkpoints:
            state = first_state(trainer, checkpoints)
            if processes.is_first():
                tables.keep(made_of, config, workdir)
                hf_files.keep(config.tokenizer.name, workdir)
                files.write_atomically(workdir / "config.json", configs.to_json(config))
            plan = Plan(
                config, mesh, stream, found.valid, found.blocks, found.evaluates,
                trainer.problem.source.num_states, int(state.step),
            )  # fmt: skip
            announce(trainer, plan, workdir, int(state.step))
            if config.eval.elbo and found.evaluates:
                keep_baselines(config, found, workdir)
            page = RunPage(workdir)
            if processes.is_first():
                keep_facts(workdir, facts(trainer))
                page(now=True)
            evaluator = get_evaluator(Run(workdir, config, 0, tokenizer, trainer.problem, state.best_model, mesh))
            wandb = {"project": "dfm_jax", "name": workdir.name, "config": config.to_dict()}
            with MetricsWriter(
                workdir,
                resume_step=int(state.step),
                wandb=wandb if config.logging.enable_wandb else None,
                enabled=processes.is_first(),
            ) as writer:
                state, finished = update(
                    trainer,
                    state,
                    stream,
                    checkpoints=checkpoints,
                    metadata={"config": config.to_dict(), "fingerprint": stream.fingerprint},
                    writer=writer,
                    reports=Reports(
                        evaluate=lambda state, _: evaluator.loss(state.best_model, found.valid),
                        generate=lambda state, step: evaluator.samples(state.best_model, step),
                        written=page if processes.is_first() else lambda: None,
                        paced=lambda seconds: note(plan.times(seconds)) if processes.is_first() else None,
                    ),
                    stop=stop,
                )
            if finished:
                checkpoints.prune(config.checkpoint.keep_last)
        if processes.is_first():
            plots.loss_curve(workdir)
        if finished:
            conclude(evaluator, config, trainer, state, workdir)
        if processes.is_first():
            page(now=True)
    return finished


def best_model(config: Config, trainer: Trainer, state: TrainState, workdir: pathlib.Path) -> tuple[int, Transformer]:
    """The step and the network that a finished run is judged by: the last, or the best one where the run keeps it."""
    step = used_step(config, workdir, None)
    if step is None or step == int(state.step):
        return int(state.step), state.best_model
    checkpoints = Checkpoints(workdir / "checkpoints")
    return checkpoints.restore_subtree(trainer.abstract.model, *EVALUATED, step=step)


def keep_baselines(config: Config, found: preflight.Needed, workdir: pathlib.Path) -> None:
    """What the texts of the evaluation cost without a network, counted once from the run's text and said: what the
    network is to be better than."""
    if isinstance(found.train, Mixture | RecordStream):
        return  # they have no one law of tokens to count
    known, made = baselines.kept(workdir), {}
    for corpus in streams.corpora(config):
        stream = streams.get_stream(config, "eval.corpora", found.tokenizer, corpus)
        if processes.is_first() and stream.fingerprint not in known and not isinstance(stream, RecordStream):
            made[stream.fingerprint] = counted = baselines.baselines(found.train, stream, found.tokenizer)
            costs = ", ".join(f"{name} {cost['nats_per_token']:.4f}" for name, cost in counted.entry().items())
            note(f"{streams.label(config, corpus)} without a network, nats per token: {costs}")
    if made:
        baselines.keep(workdir, made)


def conclude(
    evaluator: Evaluator,
    config: Config,
    trainer: Trainer,
    state: TrainState,
    workdir: pathlib.Path,
) -> None:
    """Evaluates a finished run, unless its best checkpoint was evaluated before, and says where everything lies."""
    if processes.from_first(preflight.report_file(workdir, preflight.last_step(config, workdir)).exists()):
        say_finished(config, workdir)
        return
    if config.eval.elbo or config.eval.perplexity:
        step, model = best_model(config, trainer, state, workdir)
        evaluator.evaluate(model, step, elbo=config.eval.elbo, perplexity=config.eval.perplexity)
    say_where(config, workdir)


def say_finished(config: Config, workdir: pathlib.Path) -> None:
    """Says that nothing is left to do, and prints the report."""
    if processes.is_first():
        note(f"run {workdir} is finished: {config.optim.n_iters} steps, evaluated; there is nothing left to do")
        print((workdir / "eval" / "report.md").read_text(encoding="utf-8"))
    say_where(config, workdir)


def say_where(config: Config, workdir: pathlib.Path) -> None:
    """Prints where the parts of a finished run lie, and commands to go on."""
    if not processes.is_first():
        return
    where = {
        "loss curve": workdir / "loss.png",
        "metrics": workdir / "metrics.jsonl",
        "checkpoints": workdir / "checkpoints",
        "evaluation": workdir / "eval" / "report.md",
        "samples": workdir / "samples" / f"step_{preflight.last_step(config, workdir)}.html",
        "all of it": workdir / PAGE,
    }
    print("\n".join(f"{name:12} {path}" for name, path in where.items() if path.exists()))
    print(f"next: {terminal.command({'mode': 'sample', 'workdir': workdir, 'prompt': 'The '})}")
    print(f"      {terminal.command({'mode': 'eval', 'workdir': workdir, 'config.eval.time_points': 1024})}")
