"""The vocabulary head as the flow asks for it: the query of an objective, answered without the logits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dfm_jax import flow
from dfm_jax.kernels import vocab
from dfm_jax.models.transformer import ROWS, Transformer


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

    def local(features, kernel, bias, by_row: ByRow, by_column: ByColumn) -> flow.HeadAnswer:
        result = vocab.log_probs(features, kernel, bias, by_row.ids, **options(by_row, by_column))
        return flow.HeadAnswer(result.at_ids, result.reduced)

    options, arguments = _prepare(model, features, query, implementation, mesh)
    return _on_mesh(local, mesh, P(ROWS), extra=0)(*arguments)


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

    def from_log_probs(result: vocab.LogProbs, data: Any, shared: Any) -> Array:
        return loss(flow.HeadAnswer(result.at_ids, result.reduced), data, shared)

    def local(features, kernel, bias, by_row: ByRow, by_column: ByColumn, data: Any, shared: Any) -> Array:
        total, _ = vocab.summed_loss(
            features, kernel, bias, by_row.ids, from_log_probs, data, shared, **options(by_row, by_column)
        )
        return total if mesh is None or mesh.size == 1 else jax.lax.psum(total, ROWS)

    options, arguments = _prepare(model, features, query, implementation, mesh)
    return _on_mesh(local, mesh, P(), extra=2)(*arguments, data, shared)


class ByRow(NamedTuple):
    """The arrays of a query that go with the rows (B, L, ...)."""

    ids: Array
    shift_ids: Array | None
    shift: Array | None
    scale: Array | None


class ByColumn(NamedTuple):
    """The arrays of a query that go with the vocabulary (S padded,)."""

    weights: Array | None
    inner: Array | None


def _prepare(
    model: Transformer, features: Array, query: flow.HeadQuery, implementation: str | None, mesh: Mesh | None
) -> tuple[Callable[[ByRow, ByColumn], dict[str, Any]], tuple[Array, Array, Array, ByRow, ByColumn]]:
    """The kernel's arguments, and what makes its options from the parts that a device has of them."""
    reduction = query.reduction or flow.VocabReduction("linear")
    padding = model.config.padded_vocab_size - model.config.vocab_size
    weights, inner = (x if x is None else jnp.pad(x, (0, padding)) for x in (reduction.weights, reduction.inner))
    arguments = (
        features.astype(model.config.compute_dtype),
        model.head_kernel(),
        model.head_bias(),
        ByRow(query.ids, query.shift_ids, query.shift, reduction.scale),
        ByColumn(weights, inner),
    )

    def options(by_row: ByRow, by_column: ByColumn) -> dict[str, Any]:
        shift = None
        if by_row.shift is not None and by_row.shift_ids is not None:
            shift = vocab.Shift(by_row.shift_ids, by_row.shift)
        asked = None
        if query.reduction is not None:
            asked = vocab.Reduction(reduction.kind, by_column.weights, by_row.scale, by_column.inner)
        return {
            "shift": shift,
            "suppress": query.suppress,
            "num_valid": model.config.vocab_size,
            "reduction": asked,
            "axis_name": _tensor_axis(mesh),
            "implementation": implementation,
        }

    return options, arguments


def _on_mesh(local: Callable, mesh: Mesh | None, out: P, *, extra: int) -> Callable:
    """`local` under shard_map: rows over data and fsdp, the vocabulary over tensor; `extra` arguments go by row."""
    if mesh is None or mesh.size == 1:
        return local
    rows, axis = P(ROWS), _tensor_axis(mesh)
    specs = (rows, P(None, axis), P(axis), rows, P(axis), *(rows,) * extra)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out)


def _tensor_axis(mesh: Mesh | None) -> str | None:
    return "tensor" if mesh is not None and mesh.shape["tensor"] > 1 else None
