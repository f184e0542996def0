"""Trains a tiny model for some steps on one mesh, as one process of several if told so, and saves what came of it.

    python tests/mesh/worker.py OUT.npz CACHE MESH [--devices=N] [--coordinator=.. --num_processes=.. --process_id=..]
        [--config.group.field=value ...]

Each run has a program of its own because the number of simulated devices is fixed when jax starts.
"""

import os
import sys

devices = next((a.split("=")[1] for a in sys.argv if a.startswith("--devices=")), "8")
# Threads for every collective that simulated devices may be in at once: they wait in them, on as many threads as cores.
os.environ["NPROC"] = "16"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from configs import quickstart
from dfm_jax import config as configs
from dfm_jax.checkpoints import tree_names
from dfm_jax.cli import command_line
from dfm_jax.config import overrides as overrides_of_words
from dfm_jax.data import get_tokenizer
from dfm_jax.experiment.streams import get_training_stream
from dfm_jax.runtime import processes
from dfm_jax.runtime.mesh import AXES, MeshShape, make_mesh
from dfm_jax.training.corruption import corrupt
from dfm_jax.training.loop import batches_from, make_trainer

STEPS = 20


def make_config(cache: str, mesh: str, words: list[str]):
    config = quickstart.get_config()
    config.data.cache_dir = cache
    config.data.train = config.data.valid = os.path.join(cache, "text.txt")
    config.model.update(hidden_size=64, cond_dim=16, length=32, n_blocks=2, n_heads=4, dropout=0.1)
    config.training.batch_size = 16
    config.flow.source_distribution = "uniform"
    config.optim.update(name="adamw", lr=3e-4, warmup=5, n_iters=STEPS, ema_decay=0.9)
    config.mesh.update(dict(zip(AXES, map(int, mesh.split("x")), strict=True)))
    flags, changes = command_line.read_words(words)
    settings = overrides_of_words.apply(configs.flatten(config.to_dict()), changes, command_line.say)
    return configs.build(settings), flags


def main() -> None:
    out, cache, mesh = sys.argv[1:4]
    config, flags = make_config(cache, mesh, [a for a in sys.argv[4:] if not a.startswith("--devices=")])
    processes.initialize(flags["coordinator"], flags["num_processes"], flags["process_id"])
    tokenizer = get_tokenizer("bytes")
    stream = get_training_stream(config, tokenizer)
    trainer = make_trainer(config, tokenizer.vocab_size, make_mesh(MeshShape(**config.mesh)))
    state = trainer.create()

    @jax.jit
    def draw_noise(rows):
        batch = corrupt(rows, 3, trainer.problem, seed=config.training.seed, dropout=config.model.dropout > 0)
        return batch.x_t, batch.time, jax.random.key_data(batch.dropout_keys)

    losses, batches = [], batches_from(trainer, stream, 0)
    noise = gather(draw_noise(next(batches)))
    batches = batches_from(trainer, stream, 0)
    for _ in range(STEPS):
        state, metrics = trainer.step(state, next(batches))
        losses.append(float(metrics["loss"]))
    parameters = gather(tree_names.flatten(state.model))
    if processes.is_first():
        shares = {
            f"bytes/{name}": np.array([leaf.addressable_shards[0].data.nbytes, leaf.nbytes])
            for name, leaf in tree_names.flatten(state).items()
        }
        leaves = {f"noise/{i}": leaf for i, leaf in enumerate(jax.tree.leaves(noise))}
        model = {f"model/{name}": value for name, value in parameters.items()}
        np.savez(out, losses=losses, traces=trainer.step._cache_size(), **leaves, **model, **shares)


def gather(tree):
    """Every array whole, on every process."""
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


if __name__ == "__main__":
    main()
