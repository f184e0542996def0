"""A loss summed over rows, and its gradient taken while a block's logits are still there.

The gradient of the vocabulary head needs the loss's derivative at each row, which needs the whole row's softmax. So
`log_probs` followed by a loss multiplies by the kernel four times: logits, logits again, and two gradients. Here the
loss is a function given to the head. Its derivative is known as soon as a block's softmax is, and three products do.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .vocab_blocks import (
    Head,
    Rows,
    add_gathered,
    answer_of,
    as_cotangents,
    gradients_of,
    prepare,
    scan_rows,
    sum_rows,
)
from .vocab_types import Settings


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def summed_loss(
    settings: Settings, loss: Callable, head: Head, rows: Rows, data: Any, shared: Any
) -> tuple[Array, Array]:
    """The sum of `loss(answer, data, shared)` over all rows, and the rows' own (G, L), which carry no gradient."""
    head = prepare(settings, head, rows.features.dtype)

    def block(operands: tuple[Rows, Any]) -> Array:
        rows, data = operands
        return loss(answer_of(settings, head, rows)[0], data, shared)

    by_row = scan_rows(settings, (rows, data), block)
    return by_row.sum(), by_row


def _forward(settings: Settings, loss: Callable, head: Head, rows: Rows, data: Any, shared: Any):
    ready = prepare(settings, head, rows.features.dtype)

    def block(operands: tuple[Rows, Any], counted: Array):
        rows, data = operands
        answer, softmax = answer_of(settings, ready, rows)
        by_row, pullback = jax.vjp(lambda answer: loss(answer, data, shared), answer)
        (cotangent,) = pullback(counted.astype(by_row.dtype))
        found = gradients_of(settings, ready, rows, softmax, cotangent)
        return (by_row, found._replace(head=None), cotangent.at_ids), found.head

    counted = jnp.ones_like(rows.features[..., 0])
    (by_row, gradients, cotangent), total = sum_rows(settings, (rows, data), counted, block, ready)
    gradients = gradients._replace(head=total)
    if not settings.fold:
        gradients = add_gathered(settings, ready, rows, gradients, cotangent)
    return (by_row.sum(), by_row), as_cotangents(gradients, head, rows)


def _backward(settings: Settings, loss: Callable, gradients: tuple[Head, Rows], cotangent: tuple[Array, Array]):
    del settings, loss
    scale, _ = cotangent
    head, rows = jax.tree.map(lambda x: (x.astype(scale.dtype) * scale).astype(x.dtype), gradients)
    return head, rows, None, None


summed_loss.defvjp(_forward, _backward)
