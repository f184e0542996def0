"""What a run is at a step: everything that a checkpoint holds."""

import dataclasses
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from dfm_jax.models.transformer import Transformer, TransformerConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree. `step` counts batches used; the optimiser's own count leaves out the skipped ones."""

    step: Array  # () int32
    model: Transformer
    ema: Transformer | None  # running average of the parameters, where optim.ema_decay is on
    opt_state: Any
    bad_steps: Array  # () int32, updates in a row that were skipped because they were not finite

    @property
    def best_model(self) -> Transformer:
        """The parameters that evaluation and sampling use."""
        return self.model if self.ema is None else self.ema


def create_state(
    key: Array, model_config: TransformerConfig, optimizer: optax.GradientTransformation, ema: bool
) -> TrainState:
    """The state of step 0. Pure: jit it with `out_shardings` so that no device ever holds the whole."""
    model = Transformer(model_config, rngs=nnx.Rngs(key))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        model=model,
        ema=jax.tree.map(jnp.copy, model) if ema else None,
        opt_state=optimizer.init(model),  # pyright: ignore[reportArgumentType]  a module is a pytree
        bad_steps=jnp.zeros((), jnp.int32),
    )
