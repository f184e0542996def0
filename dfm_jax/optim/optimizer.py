"""The optimizer of a config's group `optim`, as an optax transformation."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array

from dfm_jax.optim import muon
from dfm_jax.optim.rate import learning_rate


class Entry(NamedTuple):
    """direction: (beta1, beta2, eps) -> what makes an update's direction, before weight decay and learning rate.

    moments: copies of the parameters that its state holds, at the least.
    """

    direction: Callable[[float, float, float], optax.GradientTransformation]
    moments: int


# To add an optimizer of optax, add a line.
TABLE: dict[str, Entry] = {
    "adamw": Entry(lambda beta1, beta2, eps: optax.scale_by_adam(beta1, beta2, eps), 2),
    "muon": Entry(muon.direction, 1),
    "lion": Entry(lambda beta1, beta2, eps: optax.scale_by_lion(beta1, beta2), 1),
    "adafactor": Entry(
        lambda beta1, beta2, eps: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)), 0
    ),
}
NAMES = tuple(TABLE)
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
    """An optimizer with clipping and decoupled weight decay: p <- p - lr(s) (direction + weight_decay p).

    `direction` is made of the clipped gradients: Adam's (Loshchilov & Hutter 2019), Lion's (Chen et al. 2023), Muon's
    (see `muon`), or Adafactor's second moment by rows and columns with its updates clipped to a root mean square of 1,
    without a first moment and without a scale of its own (Shazeer & Stern 2018). All have a size of about 1 an entry,
    Muon's of 0.2 as Adam's has after some steps, so a learning rate of one is of use for another; Lion wants less.
    `update(gradients, state, parameters, step=s)` takes the number s of the update, whose first is 1. The learning rate
    follows s, the run's step. The optimizer's own count differs from it after a skipped update or an import. The state
    holds no learning rate, and has the same structure with and without clipping.

    Args:
        name: 'adamw', 'muon', 'lion' or 'adafactor'.
        lr, warmup, n_iters, eta_min_ratio: of `learning_rate`.
        beta1, beta2, eps: of the direction; 'lion' has no eps; 'muon' gives them to AdamW's part; 'adafactor' has none.
        weight_decay: the coefficient of the decay, multiplied by the learning rate.
        decay: 'all' decays every parameter, as published; learned exponents then decay towards 1. 'matrices' does not
            decay biases, norm scales and exponents.
        grad_clip: the largest global norm of the gradients; 0 or None for no clipping. The path's exponents
            (`log_exponents`) and the network are clipped separately. The gradient of the exponents is mostly noise and
            as large as the network's, so one norm for both would scale the network's updates by that noise.
        exponents_lr: the learning rate of the exponents, divided by that of all other parameters.

    Raises:
        ValueError: an unknown name or decay.
    """
    if name not in TABLE:
        raise ValueError(f"optim.name = {name}: expected {', '.join(TABLE)}")
    if decay not in _DECAY:
        raise ValueError(f"optim.decay = {decay}: expected {', '.join(_DECAY)}")
    chain = optax.chain(
        optax.stateless(functools.partial(clipped, largest=grad_clip)) if grad_clip else optax.identity(),
        TABLE[name].direction(beta1, beta2, eps),
        optax.add_decayed_weights(weight_decay, mask=functools.partial(decayed, decay=decay)),
    )
    rate = functools.partial(learning_rate, lr=lr, warmup=warmup, n_iters=n_iters, eta_min_ratio=eta_min_ratio)

    def update(gradients, state, parameters, *, step: int | Array):
        # optax multiplies traced float32 arrays by Python and numpy scalars. Strict promotion does not allow that.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = chain.update(gradients, state, parameters)
        scale = -rate(step)

        def scaled(path: tuple, u: Array) -> Array:
            factor = exponents_lr if is_exponents(path) else 1.0
            return (scale * np.float32(factor)).astype(u.dtype) * u

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformationExtraArgs(chain.init, update)  # pyright: ignore[reportArgumentType]


def from_config(optim: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
    """`make_optimizer` with the fields of a config's group `optim`, but not `ema_decay`, which the step uses."""
    return make_optimizer(**{name: value for name, value in optim.items() if name != "ema_decay"})


def is_exponents(path: tuple) -> bool:
    """Whether `path`, a parameter's place in its tree, belongs to the learned exponents."""
    return "log_exponents" in jax.tree_util.keystr(path)


def clipped(gradients: Any, _: Any = None, *, largest: float) -> Any:
    """`gradients` with a global norm of at most `largest`, for the exponents and for all others separately."""
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
    """A tree of bool: which parameters decay, for decay='all' or 'matrices'.

    Matrices are told by name, because stacked biases and scales are 2-D too.
    """

    def is_matrix(path: tuple, _: Any) -> bool:
        names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        return not {"bias", "scale"} & set(names) and not is_exponents(path)

    if decay == "all":
        return jax.tree.map(lambda _: True, parameters)
    return jax.tree_util.tree_map_with_path(is_matrix, parameters)
