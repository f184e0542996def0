"""Benchmarks of the run's own programs: training step, likelihood, generation."""

import dataclasses
import time
from collections.abc import Iterator

import jax
import numpy as np

from dfm_jax.benchmark.results import Row, from_timing, per_second, single
from dfm_jax.benchmark.timing import measure
from dfm_jax.config import Config
from dfm_jax.data import Batch
from dfm_jax.experiment.problem import stand_in
from dfm_jax.models import flops
from dfm_jax.planning.programs import get_evaluator
from dfm_jax.runtime.mesh import MeshShape, check_mesh, global_batch, make_mesh, replicated
from dfm_jax.runtime.rng import noise_key
from dfm_jax.training.loop import Trainer, make_trainer

LIKELIHOOD_POINTS = 4  # time points of the measured likelihood; its time is proportional to them
SAMPLER_STEPS = 16


def get_trainer(config: Config, vocab_size: int) -> Trainer:
    """The config's, on all devices here."""
    mesh = make_mesh(MeshShape(**config.mesh))
    check_mesh(
        mesh,
        batch_size=config.training.batch_size,
        grad_accum=config.training.grad_accum,
        n_heads=config.model.n_heads,
    )
    return make_trainer(config, vocab_size, mesh, stand_in(config, vocab_size))


def random_tokens(rows: int, trainer: Trainer) -> jax.Array:
    """(rows, L) int32 data tokens, on the mesh as batches are."""
    shape = rows, trainer.config.model.length
    drawn = np.random.default_rng(0).integers(0, trainer.problem.source.vocab_size, shape, np.int32)
    return global_batch(drawn, trainer.mesh)


def train(config: Config, vocab_size: int) -> Iterator[Row]:
    """Tokens per second, step time, MFU, compilation and memory of the training step."""
    trainer = get_trainer(config, vocab_size)
    batch = Batch(random_tokens(config.training.batch_size, trainer))
    started = time.perf_counter()
    compiled = trainer.step.lower(trainer.abstract, batch).compile()
    yield single("train", "compilation", time.perf_counter() - started, "s")
    state = trainer.create()

    def step() -> dict[str, jax.Array]:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    timing = measure(step)
    amount = config.training.batch_size * config.model.length
    shape = f"{config.training.batch_size} x {config.model.length} tokens"
    yield per_second("train", "tokens", amount, timing, "tokens/s", shape)
    yield from_timing("train", "step", timing, "s", lambda seconds: seconds)
    yield single("train", "step, 95th percentile", timing.quantile(0.95), "s")
    peak = flops.peak_per_second(trainer.mesh)
    work = flops.training_step(config, trainer.problem.source.num_states)
    yield per_second("train", "model arithmetic", work / 1e12, timing, "TFLOP/s", "recomputation not counted")
    if peak:
        yield from_timing("train", "MFU", timing, "of the bfloat16 peak", lambda seconds: work / seconds / peak)
    analysis = compiled.memory_analysis()
    if analysis is not None:
        planned = analysis.peak_memory_in_bytes
        yield single("train", "memory, as compiled", planned / 2**30, "GiB per device", "the compiler's peak")
    used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if used:
        yield single(
            "train", "memory, as measured", used / 2**30, "GiB per device", "peak of JAX's pool in this process"
        )


def likelihood(config: Config, vocab_size: int) -> Iterator[Row]:
    """Evaluated tokens times time points per second."""
    trainer = get_trainer(config, vocab_size)
    evaluator = get_evaluator(trainer)
    estimator = dataclasses.replace(evaluator._estimator, time_points=LIKELIHOOD_POINTS)
    rows = config.eval.batch_size
    tokens = random_tokens(rows, trainer)
    weights = global_batch(np.ones(rows, np.float32), trainer.mesh)
    model, key = trainer.create().best_model, noise_key(0, "likelihood")
    timing = measure(lambda: estimator._program(model, tokens, weights, np.int32(0), key))
    # The published interval's points, and those of the tails: each is one pass of the model over the batch.
    passes = sum(segment.points for segment in estimator.segments)
    amount = rows * config.model.length * passes
    note = f"{rows} x {config.model.length} tokens, {passes} passes a call"
    yield per_second("likelihood", "tokens x time points", amount, timing, "tokens/s", note)
    full = sum(s.points for s in evaluator._estimator.segments)
    amount = rows * config.model.length * passes / full
    yield per_second("likelihood", f"tokens at {full} passes", amount, timing, "tokens/s", "from the figure above")


def sampler(config: Config, vocab_size: int) -> Iterator[Row]:
    """Generated tokens per second, and milliseconds of one step of the sampler."""
    trainer = get_trainer(config, vocab_size)
    generator = get_evaluator(trainer)._generator
    steps = min(SAMPLER_STEPS, generator.settings.steps)
    settings = dataclasses.replace(generator.settings, steps=steps)
    generator = dataclasses.replace(generator, settings=settings, frames=0)
    model = jax.device_put(trainer.create().best_model, replicated(trainer.mesh))
    rows, length = generator.batch_size, config.model.length
    index, given = np.arange(rows, dtype=np.int32), np.zeros((rows, length), np.int32)
    placed = [generator._place(x) for x in (index, given, np.zeros((rows, length), bool))]
    timing = measure(lambda: generator._program(model, *placed))
    note = f"{rows} x {length} tokens, {steps} steps of {settings.method}"
    yield from_timing("sampler", "step", timing, "ms", lambda seconds: 1e3 * seconds / steps, note)
    wanted = config.sampling.steps or config.flow.sampling_steps
    # With many steps fewer positions jump in each, and the vocabulary head costs less: this is the safe side.
    yield per_second(
        "sampler",
        f"tokens at {wanted} steps",
        rows * length * steps / wanted,
        timing,
        "tokens/s",
        "from the figure above",
    )


PROGRAMS = {"train": train, "likelihood": likelihood, "sampler": sampler}
