"""The types of the vocabulary head: the head itself, a query to it, and its answer.

All three are pytrees. Their arrays are leaves and the rest is static. So a `Head` or `Query` whose leaves are partition
specs serves as in_specs of `jax.shard_map`, and one whose leaves are gradients serves as a gradient.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

KINDS = ("log1p", "linear", "cotangent")  # of a reduction
_STATIC: Any = {"static": True}
_NOT_ASKED: Any = None  # of a field that operations other than draws need


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tile sizes of the 'pallas' kernels.

    rows, columns: of a tile of logits. 128 rows take two warpgroups on a GPU; columns = 0 takes as many as each pass
    has registers for. width: features per piece of the two factors that is in fast memory at a time. stages: pieces in
    flight.
    """

    rows: int = 128
    columns: int = 0
    width: int = 64
    stages: int = 4

    def __post_init__(self):
        for name, least in (("rows", 64), ("columns", 0), ("width", 64)):
            if getattr(self, name) < least or getattr(self, name) % 64:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a multiple of 64, at least {least}")
        if self.stages < 2:
            raise ValueError(f"stages = {self.stages}: expected at least 2")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """A linear map from features to logits over the vocabulary, and how it is computed.

    Attributes:
        kernel: (D, V); bias: (V,).
        num_valid: the size of the vocabulary; the columns after it are padding. None: all V are valid.
        axis_name: the mesh axis over which the vocabulary is split, where the head is used inside `jax.shard_map`
            (with its default check_vma=True). kernel, bias and a query's weights and inner are then the part of this
            shard, of equal size on each. ids, suppress and num_valid refer to the whole vocabulary. features must be
            the same on every shard, and so is the result.
        implementation: 'dense' (stores the logits), 'blocks' (also None) or 'pallas' (our own kernels), as `why_not`
            allows.
        block_rows: rows per block along the last leading axis. With 'pallas' it is the number of rows whose dlogits are
            in memory at a time. None chooses.
        tiles: tile sizes of 'pallas'.
    """

    kernel: Array
    bias: Array
    num_valid: int | None = dataclasses.field(default=None, metadata=_STATIC)
    axis_name: str | None = dataclasses.field(default=None, metadata=_STATIC)
    implementation: str | None = dataclasses.field(default=None, metadata=_STATIC)
    block_rows: int | None = dataclasses.field(default=None, metadata=_STATIC)
    tiles: Tiles = dataclasses.field(default=Tiles(), metadata=_STATIC)

    def specs(self, columns: Any) -> "Head":
        """The partition specs of this head, with the vocabulary split as `columns` says (None: not at all)."""
        return dataclasses.replace(
            self, kernel=jax.sharding.PartitionSpec(None, columns), bias=jax.sharding.PartitionSpec(columns)
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Reduction:
    """One sum over the vocabulary per row n, of the probabilities p_v after shift and suppression.

    'log1p': sum_v weights_v log1p(scale_n inner_v p_v). 'linear': sum_v weights_v p_v. 'cotangent': sum_v weights_v
    (1 - y cot y) p_v, y = scale_n inner_v in [0, pi). `reductions.py` computes them.

    Attributes:
        kind: 'log1p', 'linear' or 'cotangent'.
        weights, inner: (S,) or (V,) per state; scale: (...) per row. None stands for ones.
    """

    kind: str = dataclasses.field(metadata=_STATIC)
    weights: Array | None = None
    scale: Array | None = None
    inner: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Query:
    """Asks for log-probabilities at `ids` in each row, of the softmax of the logits after shift and suppression.

    Attributes:
        ids: (..., K) int32. Draws do not use it.
        shift: (...), added to the logit at `shift_ids` (...) int32. -inf is allowed.
        suppress: the state whose logit becomes -inf.
        reduction: at most one sum over the vocabulary.
    """

    ids: Array = _NOT_ASKED
    shift: Array | None = None
    shift_ids: Array | None = None
    suppress: int | None = dataclasses.field(default=None, metadata=_STATIC)
    reduction: Reduction | None = None

    @property
    def kind(self) -> str | None:
        """Of the reduction."""
        return None if self.reduction is None else self.reduction.kind

    def _replace(self, **changes: Any) -> "Query":
        return dataclasses.replace(self, **changes)

    def with_reduction(self, **changes: Any) -> "Query":
        """With these fields of its reduction changed, if it has one."""
        if self.reduction is None:
            return self
        return dataclasses.replace(self, reduction=dataclasses.replace(self.reduction, **changes))

    def by_row(self) -> "Query":
        """The query with only its arrays per row."""
        return self.with_reduction(weights=None, inner=None)

    def by_column(self) -> "Query":
        """The query with only its arrays per state of the vocabulary."""
        return dataclasses.replace(self, ids=_NOT_ASKED, shift=None, shift_ids=None).with_reduction(scale=None)

    def joined(self, columns: "Query") -> "Query":
        """This query's arrays per row together with the arrays per state of `columns`."""
        if columns.reduction is None:
            return self
        return self.with_reduction(weights=columns.reduction.weights, inner=columns.reduction.inner)

    def padded(self, columns: int) -> "Query":
        """The query with weights and inner padded to (columns,). Padding has probability zero: any value will do."""

        def pad(value: Array | None) -> Array | None:
            return None if value is None else jnp.pad(value, (0, columns - value.shape[0]))

        if self.reduction is None:
            return self
        return self.with_reduction(weights=pad(self.reduction.weights), inner=pad(self.reduction.inner))

    def specs(self, rows: Any, columns: Any) -> "Query":
        """The partition specs of this query: `rows` for what goes with the rows, `columns` for the vocabulary."""
        query = dataclasses.replace(self, ids=rows, shift=rows, shift_ids=rows)
        return query.with_reduction(weights=columns, scale=rows, inner=columns)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """A query's answer, at least float32.

    Attributes:
        at_ids: (..., K) log-probabilities, nats.
        reduced: (...) the query's reduction, None if it has none.
        log_sum_exp: (...) of the changed logits; None from `answer_from_logits`.
    """

    at_ids: Array
    reduced: Array | None = None
    log_sum_exp: Array | None = None


def check(head: Head, query: Query, features: Array) -> Head:
    """The head with its num_valid. Raises ValueError where the arguments do not fit together."""
    rows, kernel, bias = features.shape[:-1], head.kernel, head.bias
    if features.ndim < 2 or kernel.ndim != 2 or kernel.shape[0] != features.shape[-1]:
        raise ValueError(f"features, kernel = shapes {features.shape}, {kernel.shape}: expected (..., D) and (D, V)")
    columns = kernel.shape[1]
    shards = 1 if head.axis_name is None else jax.lax.axis_size(head.axis_name)
    if bias.shape != (columns,):
        raise ValueError(f"bias = shape {bias.shape}: expected ({columns},), one per column of the kernel")
    if query.ids is not None and (query.ids.shape[:-1] != rows or query.ids.ndim != features.ndim):
        raise ValueError(f"ids = shape {query.ids.shape}: expected {(*rows, 'K')}")
    if (query.shift is None) != (query.shift_ids is None):
        missing = "shift" if query.shift is None else "shift_ids"
        raise ValueError(f"{missing} = None: expected shape {rows}, as shift and shift_ids go together")
    for name, value in (("shift", query.shift), ("shift_ids", query.shift_ids)):
        if value is not None and value.shape != rows:
            raise ValueError(f"{name} = shape {value.shape}: expected {rows}")
    total = columns * shards
    num_valid = total if head.num_valid is None else head.num_valid
    if not 0 < num_valid <= total:
        raise ValueError(f"num_valid = {num_valid}: expected 1 to {total}, the columns of the kernel")
    if query.suppress is not None and not 0 <= query.suppress < total:
        raise ValueError(f"suppress = {query.suppress}: expected 0 to {total - 1}")
    if query.reduction is not None:
        check_reduction(query.reduction, rows, (columns,) if shards > 1 else (columns, num_valid))
    return dataclasses.replace(head, num_valid=num_valid)


def check_reduction(reduction: Reduction, rows: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """ValueError unless it is one of the known kinds, for `rows` and a vocabulary of one of `sizes`."""
    if reduction.kind not in KINDS:
        raise ValueError(f"reduction.kind = {reduction.kind!r}: expected one of {', '.join(KINDS)}")
    if reduction.kind == "linear" and not (reduction.scale is None and reduction.inner is None):
        raise ValueError("reduction.kind = 'linear': expected weights alone, neither scale nor inner")
    for name in ("weights", "inner"):
        value = getattr(reduction, name)
        if value is not None and (value.ndim != 1 or value.shape[0] not in sizes):
            raise ValueError(f"reduction.{name} = shape {value.shape}: expected one of {sizes} entries")
    if reduction.scale is not None and reduction.scale.shape != rows:
        raise ValueError(f"reduction.scale = shape {reduction.scale.shape}: expected {rows}")
