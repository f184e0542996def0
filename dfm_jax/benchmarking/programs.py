"""Benchmarks of the run's own programs: training step, likelihood, generation."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from dfm_jax.benchmarking.results import Row, from_timing, per_second, single, used_bytes
from dfm_jax.benchmarking.timing import measure
from dfm_jax.config import Config
from dfm_jax.data import Batch
from dfm_jax.experiment.problem import stand_in
from dfm_jax.models import flops
from dfm_jax.planning.programs import get_evaluator
from dfm_jax.runtime.mesh import MeshShape, check_mesh, global_batch, make_mesh, replicated
from dfm_jax.runtime.rng import noise_key
from dfm_jax.training.loop import Trainer, make_trainer

LIKELIHOOD_POINTS = 4  # time points of the measured likelihood; its time is proportional to them
SAMPLER_STEPS = {"cpu": 16, "other": 256}


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
    compiled, rows = compile_program("train", trainer.step, trainer.abstract, batch)
    yield rows[0]
    state = trainer.create()

    def step() -> dict[str, jax.Array]:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    timing = measure(step)
    amount = config.training.batch_size * config.model.length
    shape = f"{config.training.batch_size} x {config.model.length} tokens, {trainer.model_config.compute_dtype}"
    yield per_second("train", "tokens", amount, timing, "tokens/s", shape)
    yield from_timing("train", "step", timing, "ms", lambda seconds: 1e3 * seconds)
    yield single("train", "step, 95th percentile", 1e3 * timing.quantile(0.95), "ms")
    peak = flops.peak_per_second(trainer.mesh)
    work = flops.training_step(config, trainer.problem.source.num_states)
    yield per_second("train", "model arithmetic", work / 1e12, timing, "TFLOP/s", "recomputation not counted")
    if peak:
        yield from_timing("train", "MFU", timing, "of the bfloat16 peak", lambda seconds: work / seconds / peak)
    yield from rows[1:]
    yield from measured_memory("train")


def compile_program(benchmark: str, function: Any, *arguments: Any) -> tuple[Any, list[Row]]:
    """The compiled program, and rows for the seconds that it took and the memory that the compiler plans."""
    started = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    rows = [single(benchmark, "compilation", time.perf_counter() - started, "s", "tracing and compiling, no cache")]
    analysis = compiled.memory_analysis()
    if analysis is not None:
        planned = analysis.peak_memory_in_bytes / 2**30
        rows.append(single(benchmark, "memory, as compiled", planned, "GiB per device", "the compiler's peak"))
    return compiled, rows


def measured_memory(benchmark: str) -> Iterator[Row]:
    """The peak of this process, which measures one program; nothing on a processor, which does not count."""
    used = used_bytes()
    if used is not None:
        note = "peak of JAX's pool in this program's process"
        yield single(benchmark, "memory, as measured", used / 2**30, "GiB per device", note)


def likelihood(config: Config, vocab_size: int) -> Iterator[Row]:
    """Evaluated tokens times time points per second."""
    trainer = get_trainer(config, vocab_size)
    evaluator = get_evaluator(trainer)
    estimator = dataclasses.replace(evaluator._estimator, time_points=LIKELIHOOD_POINTS)
    rows = config.eval.batch_size
    tokens = random_tokens(rows, trainer)
    weights = global_batch(np.ones(rows, np.float32), trainer.mesh)
    model, key = trainer.create().best_model, noise_key(0, "likelihood")
    given = model, tokens, weights, np.int32(0), key
    compiled, about = compile_program("likelihood", estimator._program, *given)
    yield about[0]
    timing = measure(lambda: compiled(*given))
    # The published interval's points, and those of the tails: each is one pass of the model over the batch.
    passes = sum(segment.points for segment in estimator.segments)
    amount = rows * config.model.length * passes
    note = f"{rows} x {config.model.length} tokens, {passes} passes a call"
    yield per_second("likelihood", "tokens x time points", amount, timing, "tokens/s", note)
    yield from_timing("likelihood", "pass", timing, "ms", lambda seconds: 1e3 * seconds / passes)
    full = sum(s.points for s in evaluator._estimator.segments)
    amount = rows * config.model.length * passes / full
    yield per_second("likelihood", f"tokens at {full} passes", amount, timing, "tokens/s", "from the figure above")
    yield from about[1:]
    yield from measured_memory("likelihood")


def sampler(config: Config, vocab_size: int) -> Iterator[Row]:
    """Generated tokens per second, and milliseconds of one step of the sampler."""
    trainer = get_trainer(config, vocab_size)
    generator = get_evaluator(trainer)._generator
    most = SAMPLER_STEPS["cpu" if jax.default_backend() == "cpu" else "other"]
    steps = min(most, generator.settings.steps)
    settings = dataclasses.replace(generator.settings, steps=steps)
    generator = dataclasses.replace(generator, settings=settings, frames=0)
    model = jax.device_put(trainer.create().best_model, replicated(trainer.mesh))
    rows, length = generator.batch_size, config.model.length
    index, given = np.arange(rows, dtype=np.int32), np.zeros((rows, length), np.int32)
    placed = [generator._place(x, whole=False) for x in (index, given, np.zeros((rows, length), bool))]
    compiled, about = compile_program("sampler", generator._program, model, *placed)
    yield about[0]
    timing = measure(lambda: compiled(model, *placed), least=3)
    note = f"{rows} x {length} tokens, {steps} steps of {settings.method}"
    yield from_timing("sampler", "step", timing, "ms", lambda seconds: 1e3 * seconds / steps, note)
    yield per_second("sampler", f"tokens at {steps} steps", rows * length, timing, "tokens/s", note)
    wanted = config.sampling.steps or config.flow.sampling_steps
    if wanted != steps:
        # With many steps fewer positions jump in each, and the vocabulary head costs less: this is the safe side.
        amount = rows * length * steps / wanted
        yield per_second("sampler", f"tokens at {wanted} steps", amount, timing, "tokens/s", "from the step's time")
    yield from about[1:]
    yield from measured_memory("sampler")


PROGRAMS = {"train": train, "likelihood": likelihood, "sampler": sampler}
