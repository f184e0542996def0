"""The learning rate: a linear warm-up, then half a cosine down to a minimum."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def learning_rate(step: int | Array, *, lr: float, warmup: int, n_iters: int, eta_min_ratio: float) -> Array:
    """Learning rate of update `step` (the first is 1), float32; `step` of any shape.

    For s < warmup it is lr * s / warmup. After that it is
    lr_min + (lr - lr_min) * (1 + cos(pi * (s - warmup) / (n_iters - warmup))) / 2 with lr_min = eta_min_ratio * lr.
    From s = n_iters on it stays at lr_min.
    """
    step = jnp.asarray(step).astype(jnp.float32)
    lr_min = eta_min_ratio * lr
    # max(..., 1): both branches are always computed, and a warm-up of 0 or of the whole run would divide by 0.
    progress = jnp.clip((step - warmup) / max(n_iters - warmup, 1), 0.0, 1.0)
    cosine = lr_min + (lr - lr_min) * 0.5 * (1.0 + jnp.cos(np.float32(np.pi) * progress))
    return jnp.where(step < warmup, lr * step / max(warmup, 1), cosine)
