"""The PyTorch reference's outputs (tests/fixtures), as arrays of ours."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.models.transformer import Transformer, TransformerConfig

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
SOURCES = ("uniform", "mask")


@functools.cache
def load(source: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"transformer_{source}.npz") as file:
        return dict(file)


def part(source: str, name: str) -> dict[str, np.ndarray]:
    """The tensors saved as `name`/TENSOR."""
    return {key.removeprefix(name + "/"): value for key, value in load(source).items() if key.startswith(name + "/")}


def config(source: str, **options) -> TransformerConfig:
    return TransformerConfig(**(convert.infer_config(part(source, "param")) | {"length": 12} | options))


def model(source: str, **options) -> Transformer:
    tensors = part(source, "param")
    del tensors[convert.INV_FREQ]
    return jax.tree.map(jnp.asarray, convert.from_tensors(tensors, config(source, **options)))


def inputs(source: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x_t, time, x_1."""
    data = load(source)
    return jnp.asarray(data["x_t"], jnp.int32), jnp.asarray(data["time"]), jnp.asarray(data["x_1"], jnp.int32)
