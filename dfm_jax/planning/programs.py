"""The programs of a config, ready to be compiled: the very functions that `train`, `eval` and `sample` run."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfm_jax.config import Config
from dfm_jax.data import Batch, TokenStream
from dfm_jax.data.tokenizers.byte import ByteTokenizer
from dfm_jax.evaluation.evaluate import Evaluator
from dfm_jax.evaluation.generation import Generator
from dfm_jax.evaluation.settings import EvaluationSettings
from dfm_jax.experiment.problem import abstract
from dfm_jax.flow.samplers.events import Events
from dfm_jax.flow.samplers.unmasking.unmask import Unmask
from dfm_jax.runtime.mesh import batch_sharding, replicated
from dfm_jax.runtime.rng import noise_key
from dfm_jax.training.loop import Trainer, make_trainer


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and the shapes, dtypes and shardings that it is called with."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    rows: int  # sequences in one call, over all devices
    tokens: int  # tokens in one call, over all devices
    states: int  # logical vocabulary rows
    width: int  # of the residual stream
    turns: int = 1  # of its outermost loop: steps of a sampler, times of a likelihood


def train(config: Config, vocab_size: int, mesh: Mesh) -> Program:
    """One update."""
    trainer = make_trainer(config, vocab_size, mesh, abstract(config, vocab_size))
    rows = config.training.batch_size
    return Program(
        "train",
        trainer.step,
        (trainer.abstract, Batch(tokens(rows, config, mesh))),
        rows,
        rows * config.model.length,
        trainer.problem.source.num_states,
        config.model.hidden_size,
    )


def evaluate(config: Config, vocab_size: int, mesh: Mesh) -> Program:
    """The likelihood of one batch, all its time points."""
    trainer = make_trainer(config, vocab_size, mesh, abstract(config, vocab_size))
    rows, estimator = config.eval.batch_size, get_evaluator(trainer)._estimator
    weights = jax.ShapeDtypeStruct((rows,), jnp.float32, sharding=batch_sharding(mesh))
    key = jax.eval_shape(lambda: noise_key(config.training.seed, "likelihood"))
    return Program(
        "evaluate",
        estimator._program,
        (trainer.abstract.best_model, tokens(rows, config, mesh), weights, np.int32(0), key),
        rows,
        rows * config.model.length,
        trainer.problem.source.num_states,
        config.model.hidden_size,
        estimator.evaluations,
    )


def loss(config: Config, vocab_size: int, mesh: Mesh) -> Program:
    """The evaluation loss of one batch, which the trainer asks for at its intervals."""
    trainer = make_trainer(config, vocab_size, mesh, abstract(config, vocab_size))
    rows, by_row = config.eval.batch_size, batch_sharding(mesh)
    weights = jax.ShapeDtypeStruct((rows,), jnp.float32, sharding=by_row)
    index, time = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
    key = jax.eval_shape(lambda: noise_key(config.training.seed, "likelihood"))
    return Program(
        "loss",
        get_evaluator(trainer)._evaluation_loss._program,
        (trainer.abstract.best_model, Batch(tokens(rows, config, mesh)), weights, index, time, time, key),
        rows,
        rows * config.model.length,
        trainer.problem.source.num_states,
        config.model.hidden_size,
    )


def sample(config: Config, vocab_size: int, mesh: Mesh) -> Program:
    """One batch of sequences, all its steps; the parameters are whole on every device."""
    trainer = make_trainer(config, vocab_size, mesh, abstract(config, vocab_size))
    generator = get_evaluator(trainer)._generator
    rows, length = generator.batch_size, config.model.length
    everywhere = replicated(mesh)
    model = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), trainer.abstract.best_model
    )
    by_row = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    index = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=by_row)
    given = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=by_row)
    fixed = jax.ShapeDtypeStruct((rows, length), jnp.bool_, sharding=by_row)
    return Program(
        "sample",
        generator._program,
        (model, index, given, fixed),
        rows,
        rows * length,
        trainer.problem.source.num_states,
        config.model.hidden_size,
        known_steps(generator),
    )


def known_steps(generator: Generator) -> int:
    """The steps of a sampler, 1 where their number depends on what it draws: the plan counts such a loop once."""
    step = generator.problem.path.get_step(generator.settings.method)
    drawn = isinstance(step, Events) or (isinstance(step, Unmask) and not step.by_schedule)
    return 1 if drawn or generator.settings.draft > 1 else generator.settings.steps


def get_evaluator(trainer: Trainer) -> Evaluator:
    """As `--mode=eval` makes it; its tokenizer and corpora are of no use to a program that does not run."""
    config = trainer.config
    return Evaluator(
        settings=EvaluationSettings.from_config(config, trainer.problem.source.vocab_size),
        problem=trainer.problem,
        tokenizer=ByteTokenizer(),
        mesh=trainer.mesh,
        workdir=pathlib.Path(),
        open_corpus=_no_corpus,
        note=lambda line: None,
    )


def _no_corpus(name: str) -> TokenStream:
    raise ValueError(f"corpus {name}: expected none while planning")


def tokens(rows: int, config: Config, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, config.model.length), jnp.int32, sharding=batch_sharding(mesh))


PROGRAMS = {"train": train, "loss": loss, "evaluate": evaluate, "sample": sample}
