"""Floating-point operations of the model, and what the chip could do: model FLOP utilisation.

`config` is a run's config, of which the groups `model` and `training` are read.
"""

from typing import Any

import jax

from dfm_jax.runtime import peaks


def matrix_parameters(config: Any, num_states: int) -> int:
    """Entries of the matrices that each token is multiplied by: blocks, modulation apart, and vocabulary head."""
    width = config.model.hidden_size
    return config.model.n_blocks * (4 + 2 * config.model.mlp_ratio) * width**2 + width * num_states


def forward_per_token(config: Any, num_states: int) -> float:
    """2 per matrix entry, and 4 L D per block for full attention's two products (scores, weighted values)."""
    attention = 4 * config.model.n_blocks * config.model.length * config.model.hidden_size
    return 2 * matrix_parameters(config, num_states) + attention


def training_step(config: Any, num_states: int) -> float:
    """Of one update, all devices together: forward and backward are three forwards; recomputation does not count."""
    tokens = config.training.batch_size * config.model.length
    return 3 * forward_per_token(config, num_states) * tokens


def peak_per_second(mesh: jax.sharding.Mesh) -> float | None:
    """Dense bfloat16 operations of the whole mesh, or None for a device that `runtime.peaks` does not know."""
    peak = peaks.peak_of(mesh.devices.flat[0].device_kind)
    return None if peak is None else peak * mesh.size
