"""The vocabulary head as the flow asks for it: the query of an objective, answered without the logits."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dfm_jax import flow
from dfm_jax.kernels import vocab_head
from dfm_jax.models.transformer import ROWS, Transformer


def of(model: Transformer, *, implementation: str | None = None, axis_name: str | None = None) -> vocab_head.Head:
    """The model's head; its padding is no part of the vocabulary."""
    return vocab_head.Head(
        model.head_kernel(),
        model.head_bias(),
        num_valid=model.config.vocab_size,
        axis_name=axis_name,
        implementation=implementation,
    )


def answer(
    model: Transformer,
    features: Array,
    query: flow.HeadQuery,
    *,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> flow.HeadAnswer:
    """What `flow.answer_from_logits(model.logits(features), query)` says, through the fused head.

    features (B, L, D), query as in `flow`; the answer is float32. The products run in the model's compute_dtype.
    With a mesh (data, fsdp, tensor) each device keeps its rows and its part of the vocabulary: the parts of a
    softmax are combined over tensor, and the kernel's gradient is reduced once.
    """
    given = _given(model, features, query, implementation, mesh)
    return _on_mesh(vocab_head.log_probs, mesh, given, P(ROWS))(*given)


def answers(
    model: Transformer,
    features: Array,
    queries: Sequence[flow.HeadQuery],
    *,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> tuple[flow.HeadAnswer, ...]:
    """`answer` to each of several queries about the same features, from one product with the head's matrix."""
    head, _, rounded = _given(model, features, queries[0], implementation, mesh)
    given = head, tuple(query.padded(model.config.padded_vocab_size) for query in queries), rounded
    return _on_mesh(vocab_head.log_probs_of_each, mesh, given, P(ROWS))(*given)


def summed_loss(
    model: Transformer,
    features: Array,
    query: flow.HeadQuery,
    loss: Callable[[flow.HeadAnswer, Any, Any], Array],
    data: Any,
    shared: Any,
    *,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> Array:
    """() float32: the sum over positions of `loss(answer, data, shared)`, with a quarter less work than `answer`.

    loss: maps the answer (B, R, ...) at R consecutive positions, `data` (arrays (B, L, ...)) cut to the same
    positions and the whole of `shared` (arrays (B, ...)) to (B, R) float32. No gradient flows to data and shared.
    """

    def local(head: vocab_head.Head, query: flow.HeadQuery, features: Array, data: Any, shared: Any) -> Array:
        total, _ = vocab_head.summed_loss(head, query, features, loss, data, shared)
        return total if mesh is None or mesh.size == 1 else jax.lax.psum(total, ROWS)

    given = _given(model, features, query, implementation, mesh)
    return _on_mesh(local, mesh, given, P(), P(ROWS), P(ROWS))(*given, data, shared)


def _given(
    model: Transformer, features: Array, query: flow.HeadQuery, implementation: str | None, mesh: Mesh | None
) -> tuple[vocab_head.Head, flow.HeadQuery, Array]:
    head = of(model, implementation=implementation, axis_name=_tensor_axis(mesh))
    return head, query.padded(model.config.padded_vocab_size), features.astype(model.config.compute_dtype)


def _on_mesh(
    local: Callable,
    mesh: Mesh | None,
    given: tuple[vocab_head.Head, flow.HeadQuery | tuple[flow.HeadQuery, ...], Array],
    out: P,
    *others: P,
) -> Callable:
    """`local` under shard_map: rows over data and fsdp, the vocabulary over tensor; `others` of further arguments."""
    if mesh is None or mesh.size == 1:
        return local
    head, asked, _ = given
    rows, axis = P(ROWS), head.axis_name
    each = tuple(query.specs(rows, P(axis)) for query in (asked if isinstance(asked, tuple) else (asked,)))
    specs = (head.specs(axis), each if isinstance(asked, tuple) else each[0], rows, *others)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out)


def _tensor_axis(mesh: Mesh | None) -> str | None:
    return "tensor" if mesh is not None and mesh.shape["tensor"] > 1 else None
