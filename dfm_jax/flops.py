"""Floating-point operations of the model, and what the chip could do: model FLOP utilisation."""

import jax

from dfm_jax.config import Config

# Dense bfloat16 peak per device, operations a second (the makers' data sheets).
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40": 181e12,
    "V100": 125e12,
}


def matrix_parameters(config: Config, num_states: int) -> int:
    """Entries of the matrices that each token is multiplied by: blocks, modulation apart, and vocabulary head."""
    width = config.model.hidden_size
    return config.model.n_blocks * (4 + 2 * config.model.mlp_ratio) * width**2 + width * num_states


def forward_per_token(config: Config, num_states: int) -> float:
    """2 per matrix entry, and 4 L D per block for full attention's two products (scores, weighted values)."""
    attention = 4 * config.model.n_blocks * config.model.length * config.model.hidden_size
    return 2 * matrix_parameters(config, num_states) + attention


def training_step(config: Config, num_states: int) -> float:
    """Of one update, all devices together: forward and backward are three forwards; recomputation does not count."""
    tokens = config.training.batch_size * config.model.length
    return 3 * forward_per_token(config, num_states) * tokens


def peak_per_second(mesh: jax.sharding.Mesh) -> float | None:
    """bfloat16 peak of the whole mesh, or None for a chip that is not in the table."""
    kind = mesh.devices.flat[0].device_kind
    for name, peak in PEAKS.items():
        if name in kind:
            return peak * mesh.size
    return None
