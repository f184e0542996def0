"""Muon: momentum whose matrices are made orthogonal, and AdamW for what is no matrix of the network's inside.

The direction of a matrix is 0.2 sqrt(max(m, n)) O, where O is the nearest orthogonal matrix to its momentum, found
approximately by five steps of Newton and Schulz (Jordan et al. 2024). The factor gives it the root mean square that an
update of AdamW has (Liu et al. 2025, arXiv 2502.16982), so both parts take one learning rate and one weight decay.

As its authors do, embedding, head, norms and biases go by AdamW, and so do learned exponents. Each matrix is made
orthogonal apart: that of each block, although they are stacked in one array, and q, k and v, and the shifts, scales and
gates of a modulation, each of its own.
"""

import math
from typing import Any

import jax
import numpy as np
import optax
from optax import contrib
from optax.transforms import MaskedNode

MOMENTUM = 0.95  # its authors' value
RMS = 0.2
# Parts of a parameter's name that make it no matrix of the inside.
_OTHERS = frozenset(("embedding", "head", "bias", "scale", "log_exponents"))


def direction(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Muon's direction for matrices, Adam's with (beta1, beta2, eps) for the others.

    The state holds one moment of each matrix, and two of the others.
    """
    inside = optax.chain(contrib.scale_by_muon(beta=MOMENTUM, weight_dimension_numbers=axes), optax.stateless(_scaled))
    return optax.partition({"muon": inside, "adam": optax.scale_by_adam(beta1, beta2, eps)}, labels)


def labels(parameters: Any) -> Any:
    """A tree of 'muon' and 'adam', by the names of the parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, p: "muon" if is_matrix(path, p) else "adam", parameters)


def is_matrix(path: tuple, parameter: Any) -> bool:
    """Whether Muon takes the parameter at `path`."""
    return not _OTHERS & set(_names(path)) and parameter.ndim >= 2


def axes(parameters: Any) -> Any:
    """The axes of the matrices in each array, (..., inputs, ..., outputs): stacked blocks have theirs in front.

    All other axes count matrices. What is masked stays masked.
    """

    def of_leaf(path: tuple, parameter: Any) -> Any:
        if isinstance(parameter, MaskedNode):
            return parameter
        return contrib.MuonDimensionNumbers(int("blocks" in _names(path)), parameter.ndim - 1)

    return jax.tree_util.tree_map_with_path(of_leaf, parameters, is_leaf=lambda x: isinstance(x, MaskedNode))


def _scaled(updates: Any, _: Any = None) -> Any:
    def scaled(path: tuple, update: Any) -> Any:
        rows, columns = update.shape[int("blocks" in _names(path))], update.shape[-1]
        return np.float32(RMS * math.sqrt(max(rows, columns))).astype(update.dtype) * update

    return jax.tree_util.tree_map_with_path(scaled, updates)


def _names(path: tuple) -> list[str]:
    return jax.tree_util.keystr(path, simple=True, separator=".").split(".")
