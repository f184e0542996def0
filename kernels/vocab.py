"""The vocabulary head: features to log-probabilities at a few ids, to a token, to a loss; never to logits.

log p(v) = x . kernel[:, v] + bias_v - log sum_u exp(x . kernel[:, u] + bias_u). Each operation is defined by its
`dense` implementation (`vocab_dense.py`), which does store the logits.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from . import vocab_blocks, vocab_dense, vocab_loss, vocab_pallas, vocab_sample
from .attention import is_gpu, target_platform
from .vocab_pallas import Tiles
from .vocab_types import LogProbs, Reduction, Settings, Shift, accumulator, check, pad_columns

__all__ = ["LogProbs", "Reduction", "Shift", "Tiles", "argmax", "log_probs", "sample", "summed_loss"]

IMPLEMENTATIONS = ("dense", "blocks", "pallas")
# Of one block's float32 logits. A CPU gains 8 % from 100 MB over 50 and loses 20 % with 25; a GPU wants large
# products, and the read and write of the kernel's gradient, once per block, to be small beside them.
_BLOCK_BYTES = {"cpu": 2**27, "other": 2**30}


def log_probs(
    features: Array,
    kernel: Array,
    bias: Array,
    ids: Array,
    *,
    shift: Shift | None = None,
    suppress: int | None = None,
    num_valid: int | None = None,
    reduction: Reduction | None = None,
    axis_name: str | None = None,
    block_rows: int | None = None,
    tiles: Tiles | None = None,
    implementation: str | None = None,
) -> LogProbs:
    """Log-softmax at `ids`, its log-sum-exp, and at most one sum over the vocabulary.

    The dtype of `features` is that of the matrix products (the kernel is cast to it); products accumulate, and all
    statistics are, in float32 (float64 for float64 features). Differentiable in features, kernel, bias,
    shift.amounts and the arrays of `reduction`; the gradient has the dtype of its argument.

    Args:
        features: (..., D) with at least one leading axis. Blocks run along the last leading axis, so an array
            sharded along the others stays local. Under automatic partitioning the kernel's gradient is still
            reduced once per block: wrap the call in `jax.shard_map` over the data axes and it is reduced once.
        kernel: (D, V); bias: (V,). ids: (..., K) int32.
        shift: adds an amount (-inf allowed) to one logit per row. suppress: an id whose logit becomes -inf.
        num_valid: columns from here on are padding, never part of the vocabulary. Logits of -inf have
            log-probability -inf and gradient zero.
        axis_name: the mesh axis over which the vocabulary is split, when called inside `jax.shard_map` (with its
            default check_vma=True). kernel and bias (and weights, inner) are then this shard's equal part, ids,
            suppress and num_valid count over the whole; features must be the same on every shard, as the result is.
        block_rows: rows per block along the last leading axis; of 'pallas', of all rows, how many have their dlogits in
            memory at a time. None chooses.
        tiles: of the kernels of 'pallas'.
        implementation: 'dense' (stores the logits) | 'blocks' (the default) | 'pallas' (kernels of our own: Hopper and
            later in float16 or bfloat16; elsewhere a loop over the same tiles).

    Returns:
        LogProbs: at_ids (..., K), log_sum_exp (...), reduced (...) or None, in nats.

    Raises:
        ValueError: shapes that do not fit, or an option outside its range.
    """
    chosen = _choose(implementation)
    if chosen == "dense":
        _no_shards(axis_name)
        num_valid = check(
            features, kernel, bias, ids, shift=shift, suppress=suppress, num_valid=num_valid, reduction=reduction
        )
        return vocab_dense.log_probs(
            features, kernel, bias, ids, shift=shift, suppress=suppress, num_valid=num_valid, reduction=reduction
        )
    settings, head, rows = _prepare(
        features, kernel, bias, ids, shift, suppress, num_valid, reduction, axis_name, block_rows
    )
    if chosen == "pallas":
        answer = vocab_pallas.log_probs(_plan(settings, head, rows, block_rows, tiles), head, rows)
    else:
        answer = vocab_blocks.log_probs(settings, head, rows)
    return jax.tree.map(lambda x: x.reshape(*features.shape[:-1], *x.shape[2:]), answer)


def summed_loss(
    features: Array,
    kernel: Array,
    bias: Array,
    ids: Array,
    loss: Callable[[LogProbs, Any, Any], Array],
    data: Any = (),
    shared: Any = (),
    *,
    shift: Shift | None = None,
    suppress: int | None = None,
    num_valid: int | None = None,
    reduction: Reduction | None = None,
    axis_name: str | None = None,
    block_rows: int | None = None,
    tiles: Tiles | None = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """sum over rows of loss(log_probs(...), data, shared): a quarter less arithmetic than the two apart.

    Differentiating it costs three products with the kernel where `log_probs` and a loss after it cost four, since
    the gradient is taken in the forward pass, block by block. Undifferentiated it costs one.

    Args:
        features: (B, L, D). Others, and `implementation`, as in `log_probs`. 'pallas' computes the logits again rather
            than keep them, and so takes four products.
        loss: maps a LogProbs of (B, R) rows, `data` cut to the same rows and the whole of `shared` to (B, R) float32,
            row by row: R consecutive positions of the L. It must not close over arrays that are differentiated.
        data: a pytree of (B, L, ...) arrays; shared: a pytree of arrays. No gradient flows to either.

    Returns:
        The sum, () float32, differentiable as `log_probs` is, and the losses (B, L), which are not.

    Raises:
        ValueError: as `log_probs`, or features that are not (B, L, D).
    """
    if features.ndim != 3:
        raise ValueError(f"features {features.shape}: accepted (B, L, D)")
    data, shared = jax.lax.stop_gradient((data, shared))
    if _choose(implementation) != "blocks":
        answer = log_probs(
            features, kernel, bias, ids, shift=shift, suppress=suppress, num_valid=num_valid,
            reduction=reduction, axis_name=axis_name, block_rows=block_rows, tiles=tiles,
            implementation=implementation,
        )  # fmt: skip
        by_row = loss(answer, data, shared)
        return by_row.sum(), jax.lax.stop_gradient(by_row)
    settings, head, rows = _prepare(
        features, kernel, bias, ids, shift, suppress, num_valid, reduction, axis_name, block_rows
    )
    return vocab_loss.summed_loss(settings, loss, head, rows, data, shared)


def sample(
    key: Array,
    features: Array,
    kernel: Array,
    bias: Array,
    *,
    shift: Shift | None = None,
    suppress: int | None = None,
    num_valid: int | None = None,
    temperature: Array | float = 1.0,
    top_p: float = 1.0,
    axis_name: str | None = None,
    block_rows: int | None = None,
    implementation: str | None = None,
) -> Array:
    """One token per row from softmax(logits / temperature), as `log_probs` defines the logits.

    A two-level inverse CDF, two 32-bit words per row: the law is that of the float32 probabilities to 1e-5 in total
    variation, tokens of mass 2^-22 included, and an excluded token is never drawn.

    Args:
        key: one typed key, or keys of the shape (...) of the rows. With one per row, a row's draw depends on its own
            key and features only, not on its neighbours, the blocks or the mesh.
        temperature: a number > 0, or (...) float32 of them, one per row.
        top_p: draws from the smallest set of most probable tokens that has this mass (after the temperature);
            tokens as probable as its last one are in it too. 1 is off.
        Others as in `log_probs`; with `axis_name`, the key too must be the same on every shard. Draws have no kernel of
            their own: 'pallas' is 'blocks' here.

    Returns:
        (...) int32.

    Raises:
        ValueError: as `log_probs`; temperature or top_p out of range; a key that is not typed or of another shape.
    """
    rows = features.shape[:-1]
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), rows):
        raise ValueError(f"key of shape {key.shape}, dtype {key.dtype}: accepted one typed PRNG key or {rows} of them")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p={top_p}: accepted 0 < top_p <= 1")
    if isinstance(temperature, float | int) and not temperature > 0:
        raise ValueError(f"temperature={temperature}: accepted temperature > 0; argmax is its limit at 0")
    by_row = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), rows)
    if key.shape == ():
        words = jax.random.bits(key, (*rows, 2), jnp.uint32)
    else:
        words = jax.vmap(lambda k: jax.random.bits(k, (2,), jnp.uint32))(key.reshape(-1)).reshape(*rows, 2)
    draw = vocab_sample.Draw(words, by_row)
    return _draw(features, kernel, bias, draw, top_p, shift, suppress, num_valid, axis_name, block_rows, implementation)


def argmax(
    features: Array,
    kernel: Array,
    bias: Array,
    *,
    shift: Shift | None = None,
    suppress: int | None = None,
    num_valid: int | None = None,
    axis_name: str | None = None,
    block_rows: int | None = None,
    implementation: str | None = None,
) -> Array:
    """The most probable token of each row, (...) int32, the lowest id among equals. Arguments as in `log_probs`."""
    return _draw(features, kernel, bias, None, 1.0, shift, suppress, num_valid, axis_name, block_rows, implementation)


def _draw(
    features: Array,
    kernel: Array,
    bias: Array,
    draw: vocab_sample.Draw | None,
    top_p: float,
    shift: Shift | None,
    suppress: int | None,
    num_valid: int | None,
    axis_name: str | None,
    block_rows: int | None,
    implementation: str | None,
) -> Array:
    shape, length = features.shape[:-1], features.shape[-2]
    if _choose(implementation) == "dense":
        _no_shards(axis_name)
        num_valid = check(features, kernel, bias, shift=shift, suppress=suppress, num_valid=num_valid)
        logits = vocab_dense.logits(features, kernel, bias, shift=shift, suppress=suppress, num_valid=num_valid)
        if draw is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return vocab_dense.draw(logits, draw.words, draw.temperature, top_p)
    settings, head, rows = _prepare(
        features,
        kernel,
        bias,
        jnp.zeros((*shape, 0), jnp.int32),
        shift,
        suppress,
        num_valid,
        None,
        axis_name,
        block_rows,
    )
    groups, axes = rows.features.shape[0], vocab_blocks.varying_axes(rows.features)
    draw = jax.tree.map(lambda x: vocab_blocks.vary(x.reshape(groups, length, *x.shape[len(shape) :]), axes), draw)
    return vocab_sample.sample(settings, head, rows, draw, top_p).reshape(shape)


def _prepare(
    features: Array,
    kernel: Array,
    bias: Array,
    ids: Array,
    shift: Shift | None,
    suppress: int | None,
    num_valid: int | None,
    reduction: Reduction | None,
    axis_name: str | None,
    block_rows: int | None,
) -> tuple[Settings, vocab_blocks.Head, vocab_blocks.Rows]:
    """The arguments checked, as (G, L, ...) rows and a head, varying alike over the axes of an enclosing shard_map."""
    num_valid = check(
        features, kernel, bias, ids, shift=shift, suppress=suppress, num_valid=num_valid, reduction=reduction,
        shards=1 if axis_name is None else jax.lax.axis_size(axis_name),
    )  # fmt: skip
    groups, length, columns = math.prod(features.shape[:-2]), features.shape[-2], kernel.shape[1]

    def by_row(x: Array, trailing: int) -> Array:
        return x.reshape(groups, length, *x.shape[x.ndim - trailing :])

    acc = accumulator(features.dtype)
    weights, scale, inner = (None, None, None) if reduction is None else reduction[1:]
    rows = vocab_blocks.Rows(
        features=by_row(features, 1),
        ids=by_row(ids.astype(jnp.int32), 1),
        shift_ids=None if shift is None else by_row(shift.ids.astype(jnp.int32), 0),
        shift_amounts=None if shift is None else by_row(shift.amounts, 0),
        scale=None if scale is None else by_row(scale.astype(acc), 0),
    )
    head = vocab_blocks.Head(kernel, bias, pad_columns(weights, columns, acc), pad_columns(inner, columns, acc))
    axes = frozenset().union(*(vocab_blocks.varying_axes(x) for x in jax.tree.leaves((rows, head))))
    axes = axes - {axis_name}
    rows = jax.tree.map(lambda x: vocab_blocks.vary(x, axes), rows)
    head = jax.tree.map(lambda x: vocab_blocks.vary(x, axes if axis_name is None else axes | {axis_name}), head)

    platform = target_platform()
    if block_rows is None:
        most = max(1, _BLOCK_BYTES.get(platform, _BLOCK_BYTES["other"]) // (groups * columns * 4))
        least = math.ceil(length / most)
        # Equal blocks, without padding where a few more of them divide the length.
        count = next((n for n in range(least, min(2 * least, length) + 1) if length % n == 0), least)
        block_rows = math.ceil(length / count)
    settings = Settings(
        suppress=suppress,
        num_valid=num_valid,
        kind=None if reduction is None else reduction.kind,
        axis_name=axis_name,
        block_rows=block_rows,
        fold=platform != "cpu" or features.dtype == jnp.bfloat16,
    )
    return settings, head, rows


def limit(implementation: str, dtype: Any, platform: str) -> str | None:
    """Why `implementation` cannot take features of this dtype on `platform`, or None if it can."""
    if implementation == "pallas" and is_gpu(platform) and dtype not in (jnp.bfloat16, jnp.float16):
        return f"features of dtype {dtype}, accepted bfloat16 or float16"
    return None


def _plan(
    settings: Settings, head: vocab_blocks.Head, rows: vocab_blocks.Rows, block_rows: int | None, tiles: Tiles | None
) -> vocab_pallas.Plan:
    platform, dtype = target_platform(), rows.features.dtype
    if (reason := limit("pallas", dtype, platform)) is not None:
        raise ValueError(f"implementation='pallas': {reason}")
    if block_rows is None:
        block_rows = _BLOCK_BYTES.get(platform, _BLOCK_BYTES["other"]) // (head.kernel.shape[1] * dtype.itemsize)
    return vocab_pallas.Plan(dataclasses.replace(settings, block_rows=block_rows), tiles or Tiles(), is_gpu(platform))


def _choose(implementation: str | None) -> str:
    if implementation is None:
        return "blocks"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r}: accepted {', '.join(IMPLEMENTATIONS)}")
    return implementation


def _no_shards(axis_name: str | None) -> None:
    if axis_name is not None:
        raise ValueError(f"axis_name={axis_name!r}: accepted None with implementation='dense'")
