"""A loss summed over rows, with its gradient computed while the logits of a block still exist.

The gradient of the vocabulary head needs the derivative of the loss at each row, and this needs the softmax of the
whole row. So `log_probs` followed by a loss multiplies by the kernel four times: for the logits, for the logits again,
and for two gradients. Here the loss is a function that the head calls. Its derivative is known once the softmax of a
block is, and three products are enough.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .blocks import (
    Gradients,
    Settings,
    add_gathered,
    answer_of,
    as_cotangents,
    gradients_of,
    join,
    prepare,
    scan_rows,
    split,
    sum_rows,
)
from .types import Head, Query


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def summed_loss(
    settings: Settings, loss: Callable, head: Head, query: Query, features: Array, data: Any, shared: Any
) -> tuple[Array, Array]:
    """The sum of `loss(answer, data, shared)` over all rows, and the losses (G, L), which carry no gradient."""
    head, columns = prepare(head, query, features.dtype), query.by_column()

    def block(operands: tuple[Query, Array, Any]) -> Array:
        rows, features, data = operands
        return loss(answer_of(head, rows.joined(columns), features)[0], data, shared)

    by_row = scan_rows(settings, (query.by_row(), features, data), block)
    return by_row.sum(), by_row


def _forward(settings: Settings, loss: Callable, head: Head, query: Query, features: Array, data: Any, shared: Any):
    ready, columns = prepare(head, query, features.dtype), query.by_column()

    def block(operands: tuple[Query, Array, Any], counted: Array):
        rows, features, data = operands
        query = rows.joined(columns)
        answer, softmax = answer_of(ready, query, features)
        by_row, pullback = jax.vjp(lambda answer: loss(answer, data, shared), answer)
        (cotangent,) = pullback(counted.astype(by_row.dtype))
        gradients, part = split(gradients_of(settings, ready, query, features, softmax, cotangent))
        return (by_row, gradients, cotangent.at_ids), part

    counted = jnp.ones_like(features[..., 0])
    operands = (query.by_row(), features, data)
    (by_row, gradients, cotangent), total = sum_rows(settings, operands, counted, block, (ready, columns))
    gradients = join(gradients, total)
    if not settings.fold:
        gradients = add_gathered(ready, query, features, gradients, cotangent)
    return (by_row.sum(), by_row), as_cotangents(gradients, head, query, features)


def _backward(settings: Settings, loss: Callable, gradients: Gradients, cotangent: tuple[Array, Array]):
    del settings, loss
    scale, _ = cotangent
    scaled = jax.tree.map(lambda x: (x.astype(scale.dtype) * scale).astype(x.dtype), gradients)
    return *scaled, None, None


summed_loss.defvjp(_forward, _backward)
