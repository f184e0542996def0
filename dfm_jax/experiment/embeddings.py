"""The metric path of a config: where its embeddings come from, and its inverse temperature."""

import pathlib
from typing import Any

import numpy as np

from dfm_jax import flow
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.config import Config
from dfm_jax.runtime.errors import WorldError

SEED = 0  # of random embeddings: a run and its evaluation have the same
# A checkpoint's names of its embedding; the average is what evaluation uses.
EMBEDDING = ("ema.embedding.table.value", "model.embedding.table.value")
ROWS = 32  # tokens whose distances stand for all of them in the constant-speed schedule


def embeddings(config: Config, vocab_size: int) -> np.ndarray:
    """(V, D) float32 of unit length: random, of a .npy file, or of a trained run's embedding.

    Raises WorldError where there is no such file or run, its numbers are not finite, or it is of another vocabulary.
    """
    name = config.flow.embeddings
    if name.startswith("random:"):
        return random(vocab_size, int(name.removeprefix("random:")))
    if name.endswith(".npy"):
        try:
            table = np.load(name, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise WorldError(
                f"config.flow.embeddings = {name}: expected a .npy file that can be read ({error})"
            ) from None
    else:
        table = of_run(name)[:vocab_size]
    if table.ndim != 2 or len(table) != vocab_size or table.dtype.kind != "f" or not np.isfinite(table).all():
        raise WorldError(
            f"config.flow.embeddings = {name}: {table.dtype} of shape {table.shape}: expected ({vocab_size}, width) "
            "finite numbers"
        )
    length = np.linalg.norm(table.astype(np.float64), axis=1, keepdims=True)
    return (table / np.where(length > 0, length, 1.0)).astype(np.float32)


def of_run(folder: str) -> np.ndarray:
    """(rows, D) float32, the embedding of the newest intact checkpoint of a run: averaged where it keeps an average.

    Raises WorldError where there is no run or no such checkpoint.
    """
    if not (pathlib.Path(folder) / "checkpoints").is_dir():
        raise WorldError(
            f"config.flow.embeddings = {folder}: expected random:WIDTH, a .npy file, or the folder of a run"
        )
    return Checkpoints(pathlib.Path(folder) / "checkpoints").array(*EMBEDDING).astype(np.float32)


def random(vocab_size: int, width: int) -> np.ndarray:
    """Directions drawn uniformly, the same for every run."""
    table = np.random.default_rng(SEED).normal(size=(vocab_size, width))
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


def stand_in(config: Config, vocab_size: int) -> np.ndarray:
    """Random embeddings, as wide as the model's where the config names a file or a run."""
    return random(vocab_size, width(config))


def width(config: Config) -> int:
    """D of the embeddings; the model's where the config names a file or a run that is not there."""
    name = config.flow.embeddings
    return int(name.removeprefix("random:")) if name.startswith("random:") else config.model.hidden_size


def path(config: Config, scheduler: flow.Scheduler, table: Any) -> flow.MetricProbPath:
    """The path of a checked config between the embeddings `table` (V, D), numbers or a `jax.ShapeDtypeStruct`.

    The constant-speed schedule is a table of its own, made from distances: with a shape, those of a stand-in.
    """
    power = config.flow.distance_power
    beta = flow.PowerBeta(config.flow.beta_c, config.flow.beta_a)
    if config.flow.beta == "constant_speed":
        numbers = table if isinstance(table, np.ndarray) else stand_in(config, table.shape[0])
        beta = flow.ConstantSpeedBeta(rows_of(numbers, power), panels=400 if len(numbers) <= 512 else 96)
    return flow.MetricProbPath(scheduler, table, beta, power)


def rows_of(table: np.ndarray, power: float) -> np.ndarray:
    """Distances (K, V) float64 from tokens spread evenly over the vocabulary."""
    chosen = np.unique(np.linspace(0, len(table) - 1, ROWS).astype(np.int64))
    apart = np.stack([((table.astype(np.float64) - table[i]) ** 2).sum(axis=1) for i in chosen])
    return apart**power
