"""The training loop, from the first step or the newest checkpoint to the last step."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator
from typing import Any

import jax

from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.config import Config
from dfm_jax.data import Batch, Mixture, TokenStream, train_batches
from dfm_jax.experiment.problem import OfProblem, Problem, get_model_config, get_problem
from dfm_jax.models import flops, sharding
from dfm_jax.models.transformer import TransformerConfig
from dfm_jax.optim import from_config, learning_rate
from dfm_jax.runtime import compiler, processes
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.mesh import batch_sharding, global_batch, replicated
from dfm_jax.runtime.rng import noise_key
from dfm_jax.runtime.signals import GracefulStop
from dfm_jax.runtime.terminal import Progress, note, warn
from dfm_jax.training.metrics import MetricsWriter
from dfm_jax.training.state import TrainState, create_state
from dfm_jax.training.step import StepSettings, train_step
from dfm_jax.training.watch import Falling, Pace


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Everything about a run that does not change from step to step."""

    config: Config
    problem: Problem
    model_config: TransformerConfig
    settings: StepSettings
    mesh: jax.sharding.Mesh
    abstract: TrainState  # shapes and dtypes, each with its sharding
    create: Callable[[], TrainState]
    step: OfProblem  # (state, batch) -> (state, metrics)
    notes: tuple[str, ...]  # sharding rules that did not divide

    def learning_rate(self, step: int) -> float:
        """The learning rate of update `step`, whose first is 1."""
        optim = self.config.optim
        schedule = {name: optim[name] for name in ("lr", "warmup", "n_iters", "eta_min_ratio")}
        return float(learning_rate(step, **schedule))


def make_trainer(config: Config, vocab_size: int, mesh: jax.sharding.Mesh, problem: Problem | None = None) -> Trainer:
    """Builds the problem, the abstract state with its shardings, and the jitted functions. It computes no array.

    problem: replaces the config's problem, for when its data (such as a corpus's unigram law) is not there.
    """
    problem = problem or get_problem(config, vocab_size)
    platform = mesh.devices.flat[0].platform
    model_config = get_model_config(config, problem.source.num_states, platform)
    optimizer = from_config(config.optim)
    settings = StepSettings(
        seed=config.training.seed,
        grad_accum=config.training.grad_accum,
        dropout=config.model.dropout,
        ema_decay=config.optim.ema_decay,
        head=None if config.model.head == "auto" else config.model.head,
        unroll=config.training.unroll,
    )

    def create() -> TrainState:
        key = noise_key(config.training.seed, "init")
        return create_state(key, model_config, optimizer, ema=config.optim.ema_decay > 0)

    shapes = jax.eval_shape(create)
    shardings, notes = sharding.state_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
    )
    deterministic = config.training.deterministic

    def update(problem: Problem, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        return train_step(state, batch, problem=problem, optimizer=optimizer, settings=settings, mesh=mesh)

    step = compiler.jit(
        update,
        in_shardings=(replicated(mesh), shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=1,
        mesh=mesh,
        deterministic=deterministic,
    )
    return Trainer(
        config=config,
        problem=problem,
        model_config=model_config,
        settings=settings,
        mesh=mesh,
        abstract=abstract,
        create=compiler.jit(create, out_shardings=shardings, mesh=mesh, deterministic=deterministic),
        step=OfProblem(step, problem, mesh),
        notes=tuple(notes),
    )


def batches_from(trainer: Trainer, stream: TokenStream | Mixture, step: int) -> Generator[Batch, None, None]:
    """Yields the global batches (B, L) of updates step + 1, step + 2, ... The next one is already on the devices."""
    config = trainer.config
    local = train_batches(
        stream,
        length=config.model.length,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        start_step=step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    ahead = global_batch(next(local), trainer.mesh)
    for batch in local:
        current, ahead = ahead, global_batch(batch, trainer.mesh)
        yield current


def is_due(step: int, every: int) -> bool:
    """Whether `step` is a multiple of `every`; False for every = 0."""
    return every > 0 and step % every == 0


@dataclasses.dataclass(frozen=True)
class Reports:
    """What the loop runs at intervals. The loop decides when, and the caller gives the functions.

    Each function takes the state and its step and returns scalars to log.
    """

    evaluate: Callable[[TrainState, int], dict[str, float]]
    generate: Callable[[TrainState, int], dict[str, float]]
    # Told once, after the first steps, how many seconds a step takes; and after every line of metrics.
    paced: Callable[[float], None] = lambda seconds: None
    written: Callable[[], None] = lambda: None


def train(
    trainer: Trainer,
    state: TrainState,
    stream: TokenStream | Mixture,
    *,
    checkpoints: Checkpoints,
    metadata: dict[str, Any],
    writer: MetricsWriter,
    reports: Reports,
    stop: GracefulStop | None = None,
) -> tuple[TrainState, bool]:
    """Updates `state` up to step `optim.n_iters`, or until a signal asks to stop.

    The host prepares step s + 1 while the devices compute step s, and reads the metrics of s after it has started
    s + 1. The metrics of a step are `train/loss` in nats per predicted token, `train/learning_rate`, `train/grad_norm`,
    `train/bad_steps`, `train/tokens_per_second` and `train/step_time` in seconds (means since the last line),
    `train/mfu` if the chip's peak is known, and of a mixture `train/epochs/N` of its corpora N = 0, 1, ...

    With `checkpoint.keep_best` every evaluation has a checkpoint, and the one of the lowest `eval/loss` is marked. A
    line says when that loss has not fallen for some evaluations.

    A state whose last update was not finite is not saved. A checkpoint that is due then is saved after the next finite
    update. A checkpoint after which no update was finite is set aside. stop: how signals stop the run, see
    `GracefulStop`.

    Returns: the last state, and whether the run is finished.

    Raises:
        WorldError: the loss or gradient was not finite in `training.max_bad_steps` updates in a row, in the last
            updates of the run, or in all updates of this call.
    """
    config = trainer.config
    n_iters, first = config.optim.n_iters, int(state.step)
    step = first
    tokens_per_step = config.training.batch_size * config.model.length
    peak = flops.peak_per_second(trainer.mesh)
    flops_per_step = flops.training_step(config, trainer.problem.source.num_states)
    agreement = processes.Agreement(trainer.mesh)
    started, last_line = time.monotonic(), step
    pending: tuple[int, dict[str, Any], Any] | None = None
    bad = 0  # updates in a row that were not finite, up to the last one that was read
    pace = Pace(first)
    falls = Falling(writer.before("eval/loss"))

    def account(at: int, metrics: dict[str, Any], asked: Any) -> bool:
        """Reads the metrics of update `at` and logs them if they are due. Returns whether the run must stop."""
        nonlocal started, last_line, bad
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = int(values["bad_steps"])
        progress.reached(at)
        if (per_step := pace(at, at % config.logging.log_freq == 0)) is not None:
            reports.paced(per_step)
        if bad:
            warn(f"step {at}: loss {values['loss']}, gradient norm {values['grad_norm']}: the update was skipped")
        if at % config.logging.log_freq == 0 or at == n_iters or bad:
            seconds = (time.monotonic() - started) / max(at - last_line, 1)
            line = {
                "train/loss": values["loss"],
                "train/learning_rate": trainer.learning_rate(at),
                "train/grad_norm": values["grad_norm"],
                "train/bad_steps": values["bad_steps"],
                "train/step_time": seconds,
                "train/tokens_per_second": tokens_per_step / seconds,
            }
            if isinstance(stream, Mixture):
                model, training = config.model, config.training
                read = stream.epochs(at, length=model.length, batch_size=training.batch_size, seed=training.seed)
                line |= {f"train/epochs/{number}": epochs for number, epochs in enumerate(read)}
            if peak:
                line["train/mfu"] = flops_per_step / seconds / peak
            writer.write(at, line)
            reports.written()
            progress.update(at, loss=values["loss"], tokens_per_second=line["train/tokens_per_second"])
            started, last_line = time.monotonic(), at
        if bad >= config.training.max_bad_steps:
            raise not_finite(at, f"config.training.max_bad_steps = {config.training.max_bad_steps}: ")
        return bool(asked)

    def not_finite(at: int, why: str = "") -> WorldError:
        """The error of a run that ends at step `at` with updates that were not finite. Sets their checkpoint aside."""
        saved = checkpoints.set_aside_unproven(at - bad)
        return WorldError(
            f"{why}the last {bad} updates, up to step {at}, had a non-finite loss or gradient; the last good "
            f"checkpoint is {'none' if saved is None else f'step {saved}'}; expected: the same command with a lower "
            "optim.lr, a longer optim.warmup or a smaller optim.grad_clip, which goes on from there"
        )

    owed = False  # whether a checkpoint that was due has yet to be saved

    def report(at: int) -> None:
        """Evaluates and generates if they are due at step `at`, and logs both in one line."""
        nonlocal started
        pause = time.monotonic()
        values = {}
        if at == n_iters or is_due(at, config.training.eval_freq):
            values |= reports.evaluate(state, at)
        if is_due(at, config.training.perplexity_freq):
            values |= reports.generate(state, at)
        if values:
            writer.write(at, values)
            reports.written()
        if "eval/loss" in values and not owed:
            judge_loss(at, values)
        progress.paused()
        seconds = time.monotonic() - pause  # reports do not count as training time
        started += seconds
        pace.paused(seconds)

    def judge_loss(at: int, values: dict[str, float]) -> None:
        """Marks the checkpoint of step `at` if it is the best so far; says when the loss falls no more."""
        is_best, line = falls(at, values["eval/loss"], values.get("eval/loss_stderr", 0.0))
        if config.checkpoint.keep_best and is_best:
            checkpoints.mark_best(at, values["eval/loss"])
        if processes.is_first():
            told = f"validation loss {values['eval/loss']:.4f}"
            note(f"step {at}: {told}{', the lowest so far' if is_best else ''}")
            if line:
                note(f"step {at}: {line}")

    with (
        stop or GracefulStop() as signals,
        Progress(total=n_iters, start=step, every=config.logging.log_freq, enabled=processes.is_first()) as progress,
        contextlib.closing(batches_from(trainer, stream, step)) as batches,
    ):
        stopping = False
        best = config.checkpoint.keep_best
        if step and not processes.from_first(any(not name.startswith("train/") for name in writer.logged)):
            report(step)  # the run ended between its checkpoint and its report
        while step < n_iters and not stopping:
            asked = agreement.ask(signals.requested)
            state, metrics = trainer.step(state, next(batches))
            if pending is not None:
                stopping = account(*pending)
            step += 1
            pending = step, metrics, asked
            last = step == n_iters
            owed = owed or last or is_due(step, config.training.snapshot)
            owed = owed or (best and is_due(step, config.training.eval_freq))
            due = is_due(step, config.training.eval_freq) or is_due(step, config.training.perplexity_freq)
            if owed or due or stopping:
                # A checkpoint must not hold a state that the check on bad steps would have refused.
                stopping = account(*pending) or stopping
                pending = None
                if bad and (last or stopping) and (last or bad == step - first):
                    raise not_finite(step)
                if (owed or stopping) and not bad:
                    checkpoints.save(step, state, metadata=metadata)
                    owed = False
                if not stopping:
                    report(step)
    checkpoints.wait()
    if stopping:
        place = f"step {checkpoints.latest_step()}, the last before updates that were not finite" if bad else "there"
        note(f"stopped at step {step} of {n_iters}; the same command continues from {place}")
    return state, not stopping
