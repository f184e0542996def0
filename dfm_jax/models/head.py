"""The vocabulary head as the flow asks for it: the query of an objective, answered without the logits."""

import functools

import jax
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dfm_jax import flow
from dfm_jax.models.transformer import Transformer
from kernels import vocab


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
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    call = functools.partial(
        _answer,
        suppress=query.suppress,
        num_valid=model.config.vocab_size,
        kind=None if query.reduction is None else query.reduction.kind,
        axis_name="tensor" if tensor > 1 else None,
        implementation=implementation,
    )
    reduction = query.reduction or flow.VocabReduction("linear")
    by_column = [_padded(x, model.config.padded_vocab_size) for x in (reduction.weights, reduction.inner)]
    arguments = (
        features.astype(model.config.compute_dtype),
        model.head_kernel(),
        model.head_bias(),
        (query.ids, query.shift_ids, query.shift, reduction.scale),
        by_column,
    )
    if mesh is None or mesh.size == 1:
        return call(*arguments)
    rows, axis = P(("data", "fsdp")), "tensor" if tensor > 1 else None
    specs = (rows, P(None, axis), P(axis), rows, P(axis))
    sharded = jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=rows)
    return sharded(*arguments)


def _answer(
    features: Array,
    kernel: Array,
    bias: Array,
    by_row: tuple[Array, Array | None, Array | None, Array | None],
    by_column: list[Array | None],
    *,
    suppress: int | None,
    num_valid: int,
    kind: str | None,
    axis_name: str | None,
    implementation: str | None,
) -> flow.HeadAnswer:
    ids, shift_ids, shift, scale = by_row
    weights, inner = by_column
    result = vocab.log_probs(
        features,
        kernel,
        bias,
        ids,
        shift=None if shift is None or shift_ids is None else vocab.Shift(shift_ids, shift),
        suppress=suppress,
        num_valid=num_valid,
        reduction=None if kind is None else vocab.Reduction(kind, weights, scale, inner),
        axis_name=axis_name,
        implementation=implementation,
    )
    return flow.HeadAnswer(result.at_ids, result.reduced)


def _padded(by_state: Array | None, columns: int) -> Array | None:
    """(S,) -> (columns,): the padding has no probability to weigh."""
    if by_state is None:
        return None
    return jax.numpy.pad(by_state, (0, columns - by_state.shape[0]))
