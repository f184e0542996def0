"""The state of a run at a step: everything that a checkpoint holds."""

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
    """A pytree. `step` counts the batches used. The optimizer's own count leaves out skipped updates."""

    step: Array  # () int32
    model: Transformer
    ema: Transformer | None  # running average of the parameters, if optim.ema_decay > 0
    opt_state: Any
    bad_steps: Array  # () int32, skipped updates in a row: their loss or gradient was not finite

    @property
    def best_model(self) -> Transformer:
        """The parameters that evaluation and sampling use: the average, if there is one."""
        return self.model if self.ema is None else self.ema


def create_state(
    key: Array, model_config: TransformerConfig, optimizer: optax.GradientTransformation, ema: bool
) -> TrainState:
    """The state at step 0. It is pure: jit it with `out_shardings`, so that no device holds the whole state."""
    model = Transformer(model_config, rngs=nnx.Rngs(key))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        model=model,
        ema=jax.tree.map(jnp.copy, model) if ema else None,
        opt_state=optimizer.init(model),  # pyright: ignore[reportArgumentType]  a module is a pytree
        bad_steps=jnp.zeros((), jnp.int32),
    )
