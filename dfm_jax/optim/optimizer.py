"""The optimiser of a config's optim group, as an optax transformation."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from dfm_jax.optim.rate import learning_rate

# name -> (beta1, beta2, eps) -> the direction of an update, before weight decay and learning rate. An optimiser that
# optax has is a line.
_DIRECTIONS: dict[str, Callable[[float, float, float], optax.GradientTransformation]] = {
    "adamw": lambda beta1, beta2, eps: optax.scale_by_adam(beta1, beta2, eps),
    "lion": lambda beta1, beta2, eps: optax.scale_by_lion(beta1, beta2),
}
NAMES = tuple(_DIRECTIONS)
_DECAY = ("all", "matrices")


def make_optimizer(
    name: str = "adamw",
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.03,
    decay: str = "all",
    warmup: int = 2500,
    n_iters: int = 1_000_000,
    eta_min_ratio: float = 0.1,
    grad_clip: float | None = 1.0,
    exponents_lr: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Clipping, direction, decoupled decay, learning rate: p <- p - lr(s) (direction + weight_decay p).

    `update(gradients, state, parameters, step=s)` takes the number s of the update (the first is 1) for its
    learning rate: the run's step and the optimiser's own count differ after a skipped update or an import, and the
    schedule follows the run. The state holds no schedule, and has the same structure with and without
    clipping.

    Args:
        name: 'adamw' or 'lion'.
        decay: 'all' decays every parameter (as published; a learned schedule's exponents towards 1), 'matrices'
            leaves out biases, norm scales and exponents.
        grad_clip: largest global norm of the gradients, of the path's exponents (`log_exponents`) and of the network
            each; 0 or None is no clipping. The exponents' is mostly noise and as large as the network's, whose updates
            one norm for both would scale by that noise.
        exponents_lr: learning rate of the exponents / that of everything else.

    Raises:
        ValueError: an unknown name or decay.
    """
    if name not in _DIRECTIONS:
        raise ValueError(f"optim.name={name}: accepted {', '.join(_DIRECTIONS)}")
    if decay not in _DECAY:
        raise ValueError(f"optim.decay={decay}: accepted {', '.join(_DECAY)}")
    chain = optax.chain(
        optax.stateless(functools.partial(clipped, largest=grad_clip)) if grad_clip else optax.identity(),
        _DIRECTIONS[name](beta1, beta2, eps),
        optax.add_decayed_weights(weight_decay, mask=functools.partial(decayed, decay=decay)),
    )
    rate = functools.partial(learning_rate, lr=lr, warmup=warmup, n_iters=n_iters, eta_min_ratio=eta_min_ratio)

    def update(gradients, state, parameters, *, step: int | Array):
        # optax multiplies traced float32 by Python and numpy scalars, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = chain.update(gradients, state, parameters)
        scale = -rate(step)

        def scaled(path: tuple, u: Array) -> Array:
            factor = exponents_lr if is_exponents(path) else 1.0
            return (scale * np.float32(factor)).astype(u.dtype) * u

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformationExtraArgs(chain.init, update)  # pyright: ignore[reportArgumentType]


def from_config(optim: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
    """`make_optimizer` of a config's optim group, whose ema_decay is the training step's concern."""
    return make_optimizer(**{name: value for name, value in optim.items() if name != "ema_decay"})


def is_exponents(path: tuple) -> bool:
    """Whether a parameter's path in its tree is that of the schedule's exponents."""
    return "log_exponents" in jax.tree_util.keystr(path)


def clipped(gradients: Any, _: Any = None, *, largest: float) -> Any:
    """`gradients`, those of the exponents and all others each scaled to a global norm of at most `largest`."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(gradients)
    found: list[Any] = [None] * len(leaves)
    for group in (True, False):
        members = [i for i, (path, _) in enumerate(leaves) if is_exponents(path) == group]
        if members:
            scaled, _ = optax.clip_by_global_norm(largest).update([leaves[i][1] for i in members], optax.EmptyState())
            for i, g in zip(members, jax.tree.leaves(scaled), strict=True):
                found[i] = g
    return jax.tree.unflatten(tree, found)


def decayed(parameters: Any, *, decay: str) -> Any:
    """Tree of bool: which parameters decay. By path: stacked biases and scales are 2-D as matrices are."""

    def is_matrix(path: tuple, _: Any) -> bool:
        names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        return not {"bias", "scale"} & set(names) and not is_exponents(path)

    if decay == "all":
        return jax.tree.map(lambda _: True, parameters)
    return jax.tree_util.tree_map_with_path(is_matrix, parameters)
