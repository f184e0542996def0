"""One function per mode: it puts the pieces together, and holds no arithmetic of its own."""

import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from dfm_jax import config as configs
from dfm_jax import processes, sharding
from dfm_jax.command_line import Command
from dfm_jax.data import Tokenizer, TokenStream, open_stream, prepare


def run(command: Command) -> int:
    """Carries out a command; the exit status."""
    configs.check(command.config)
    operands = command.operands
    processes.initialize(operands["coordinator"], operands["num_processes"], operands["process_id"])
    return MODES[command.mode](command)


def get_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """The config's mesh over all devices of all processes, checked against the batch and the model."""
    mesh = sharding.make_mesh(sharding.MeshShape(**config.mesh))
    sharding.check_mesh(
        mesh,
        batch_size=config.training.batch_size,
        grad_accum=config.training.grad_accum,
        n_heads=config.model.n_heads,
    )
    return mesh


def get_stream(config: ConfigDict, corpus: str, split: str, tokenizer: Tokenizer) -> TokenStream:
    """The prepared corpus; process 0 prepares it first where it is not, and the others wait."""
    folder: pathlib.Path | None = None
    if processes.is_first():
        folder = prepare_corpus(config, corpus, split, tokenizer)
    processes.wait(f"prepared {corpus} {split}")
    if folder is None:
        folder = prepare_corpus(config, corpus, split, tokenizer)
    return open_stream(folder, tokenizer.name)


def prepare_corpus(config: ConfigDict, corpus: str, split: str, tokenizer: Tokenizer, **options: Any) -> pathlib.Path:
    return prepare(
        corpus,
        split,
        tokenizer,
        config.data.cache_dir,
        num_workers=config.data.num_workers,
        packing=config.data.packing if split == "valid" else "continuous",
        **options,
    )
