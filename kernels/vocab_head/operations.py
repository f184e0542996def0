"""What can be asked of the vocabulary head: log-probabilities, a summed loss, a draw, the most probable token.

log p(v) = x . kernel[:, v] + bias_v - log sum_u exp(x . kernel[:, u] + bias_u). Every operation takes the head, the
query, then its own arguments. Each is defined by its 'dense' implementation, which does store the logits.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .. import target as targets
from . import blocks, dense, draws, fused_loss
from .arithmetic import accumulator
from .shards import vary, varying_axes
from .types import ASKED, Answer, Drawn, Head, Query, check

IMPLEMENTATIONS = ("dense", "blocks", "pallas")
CAPABILITY = (9, 0)  # of the GPUs that 'pallas' is written for
# Of one block's float32 logits. A CPU gains 8 % from 100 MB over 50 and loses 20 % with 25; a GPU wants large
# products, and the read and write of the kernel's gradient, once per block, to be small beside them.
_BLOCK_BYTES = {"cpu": 2**27, "other": 2**30}


def log_probs(head: Head, query: Query, features: Array) -> Answer:
    """Log-softmax at the query's ids, its log-sum-exp, and at most one sum over the vocabulary.

    The dtype of `features` is that of the matrix products (the kernel is cast to it); products accumulate, and all
    statistics are, in float32 (float64 for float64 features). Differentiable in features and in the floating arrays of
    head and query; the gradient has the dtype of its argument. Logits of -inf have log-probability -inf and gradient
    zero.

    Args:
        features: (..., D) with at least one leading axis; the query's arrays by row are (..., K) and (...). Blocks run
            along the last leading axis, so an array sharded along the others stays local. Under automatic partitioning
            the kernel's gradient is still reduced once per block: wrap the call in `jax.shard_map` over the data axes
            and it is reduced once.

    Returns:
        Answer with at_ids (..., K), log_sum_exp (...), reduced (...) or None, in nats.

    Raises:
        ValueError: shapes that do not fit, an option outside its range, or an implementation that cannot run here.
    """
    chosen, head = _choose(head, features), check(head, query, features)
    if chosen == "dense":
        return dense.log_probs(head, query, features)
    settings, head, rows, flat = _prepare(head, query, features)
    if chosen == "pallas":
        from . import pallas  # only where it is asked for: it needs Pallas

        settings = dataclasses.replace(settings, block_rows=_rows_of_dlogits(head, flat))
        answer = pallas.log_probs(pallas.Plan(settings, targets.current().is_gpu), head, rows, flat)
    else:
        answer = blocks.log_probs(settings, head, rows, flat)
    return jax.tree.map(lambda x: x.reshape(*features.shape[:-1], *x.shape[2:]), answer)


def log_probs_of_each(head: Head, queries: Sequence[Query], features: Array) -> tuple[Answer, ...]:
    """`log_probs` of each query about the same features; with 'blocks' from one product with the kernel.

    For use without gradients: it has no derivative of its own, and one would keep the logits.
    """
    if len(queries) == 1 or _choose(head, features) != "blocks":
        return tuple(log_probs(head, query, features) for query in queries)
    prepared = [_prepare(check(head, query, features), query, features) for query in queries]
    settings, head, _, flat = prepared[0]
    answers = blocks.log_probs_of_each(settings, head, tuple(rows for _, _, rows, _ in prepared), flat)
    return jax.tree.map(lambda x: x.reshape(*features.shape[:-1], *x.shape[2:]), answers)


def summed_loss(
    head: Head,
    query: Query,
    features: Array,
    loss: Callable[[Answer, Any, Any], Array],
    data: Any = (),
    shared: Any = (),
) -> tuple[Array, Array]:
    """sum over rows of loss(log_probs(...), data, shared): a quarter less arithmetic than the two apart.

    Differentiating it costs three products with the kernel where `log_probs` and a loss after it cost four, since
    the gradient is taken in the forward pass, block by block. Undifferentiated it costs one. ('pallas' computes the
    logits again rather than keep them, and so takes four products.)

    Args:
        features: (B, L, D), the query's arrays by row to match.
        loss: maps an Answer at (B, R) rows, `data` cut to the same rows and the whole of `shared` to (B, R) float32,
            row by row: R consecutive positions of the L. It must not close over arrays that are differentiated.
        data: a pytree of (B, L, ...) arrays; shared: a pytree of arrays. No gradient flows to either.

    Returns:
        The sum, () float32, differentiable as `log_probs` is, and the losses (B, L), which are not.

    Raises:
        ValueError: as `log_probs`, or features that are not (B, L, D).
    """
    if features.ndim != 3:
        raise ValueError(f"features = shape {features.shape}: expected (B, L, D)")
    data, shared = jax.lax.stop_gradient((data, shared))
    if _choose(head, features) != "blocks":
        by_row = loss(log_probs(head, query, features), data, shared)
        return by_row.sum(), jax.lax.stop_gradient(by_row)
    settings, head, rows, flat = _prepare(check(head, query, features), query, features)
    return fused_loss.summed_loss(settings, loss, head, rows, flat, data, shared)


def sample(
    head: Head,
    query: Query,
    features: Array,
    key: Array,
    *,
    temperature: Array | float = 1.0,
    top_p: float = 1.0,
) -> Array:
    """One token per row from softmax(logits / temperature), as `log_probs` defines the logits.

    A two-level inverse CDF, two 32-bit words per row: the law is that of the float32 probabilities to 1e-5 in total
    variation, tokens of mass 2^-22 included, and an excluded token is never drawn.

    Args:
        query: its shift and suppress; ids and a reduction are not looked at. features as in `log_probs`. Draws have no
            kernel of their own: 'pallas' is 'blocks' here.
        key: one typed key, or keys of the shape (...) of the rows. With one per row, a row's draw depends on its own
            key and features only, not on its neighbours, the blocks or the mesh. With a vocabulary that is split, the
            key must be the same on every shard.
        temperature: a number > 0, or (...) float32 of them, one per row.
        top_p: draws from the smallest set of most probable tokens that has this mass (after the temperature);
            tokens as probable as its last one are in it too. 1 is off.

    Returns:
        (...) int32.

    Raises:
        ValueError: as `log_probs`; temperature or top_p out of range; a key that is not typed or of another shape.
    """
    return _draw(head, query, features, _how(features, key, temperature, top_p), top_p)


def draw(
    head: Head,
    query: Query,
    features: Array,
    key: Array | None,
    *,
    temperature: Array | float = 1.0,
    top_p: float = 1.0,
    asked: frozenset[str] = frozenset(),
) -> Drawn:
    """A token per row as `sample` draws it, and how probable it was, from one pass over the vocabulary.

    The answers speak of the softmax of the logits as `log_probs` defines them, before temperature and top-p.

    Args:
        key: as in `sample`; None gives the most probable token, the lowest id among equals.
        query: as in `sample`; its `ids` are looked at where 'at_ids' is asked for.
        asked: of 'log_prob', 'top_two', 'entropy', 'at_ids', see `Drawn`. What is not asked for is None.

    Raises:
        ValueError: as `sample`; another word in `asked`, or 'at_ids' without ids.
    """
    if not asked <= set(ASKED):
        raise ValueError(f"asked = {sorted(asked)}: expected some of {', '.join(ASKED)}")
    if "at_ids" in asked and query.ids is None:
        raise ValueError("ids = None: expected ids (..., K) where 'at_ids' is asked for")
    how = None if key is None else _how(features, key, temperature, top_p)
    ids = query.ids if "at_ids" in asked else None
    query = Query(ids=ids, shift=query.shift, shift_ids=query.shift_ids, suppress=query.suppress)  # pyright: ignore
    chosen, head = _choose(head, features, draws=True), check(head, query, features)
    if chosen == "dense":
        logits = dense.logits_of(head, query, features)
        return dense.look(logits, _dense_token(logits, how, top_p), query.ids, asked)
    settings, head, rows, flat = _prepare(head, query, features)
    drawn = draws.draw(settings, head, rows, flat, _by_row(how, features, flat), top_p, asked)
    return jax.tree.map(lambda x: x.reshape(*features.shape[:-1], *x.shape[2:]), drawn)


def _how(features: Array, key: Array, temperature: Array | float, top_p: float) -> draws.Draw:
    rows = features.shape[:-1]
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), rows):
        raise ValueError(f"key = shape {key.shape}, dtype {key.dtype}: expected one typed PRNG key or {rows} of them")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p = {top_p}: expected a number above 0, at most 1")
    if isinstance(temperature, float | int) and not temperature > 0:
        raise ValueError(f"temperature = {temperature}: expected a number above 0; argmax is its limit at 0")
    by_row = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), rows)
    if key.shape == ():
        words = jax.random.bits(key, (*rows, 2), jnp.uint32)
    else:
        words = jax.vmap(lambda k: jax.random.bits(k, (2,), jnp.uint32))(key.reshape(-1)).reshape(*rows, 2)
    return draws.Draw(words, by_row)


def argmax(head: Head, query: Query, features: Array) -> Array:
    """The most probable token of each row, (...) int32, the lowest id among equals. Arguments as in `sample`."""
    return _draw(head, query, features, None, 1.0)


def _draw(head: Head, query: Query, features: Array, how: draws.Draw | None, top_p: float) -> Array:
    query = Query(shift=query.shift, shift_ids=query.shift_ids, suppress=query.suppress)
    chosen, head = _choose(head, features, draws=True), check(head, query, features)
    if chosen == "dense":
        return _dense_token(dense.logits_of(head, query, features), how, top_p)
    settings, head, rows, flat = _prepare(head, query, features)
    return draws.sample(settings, head, rows, flat, _by_row(how, features, flat), top_p).reshape(features.shape[:-1])


def _dense_token(logits: Array, how: draws.Draw | None, top_p: float) -> Array:
    if how is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return dense.draw(logits, how.words, how.temperature, top_p)


def _by_row(how: draws.Draw | None, features: Array, flat: Array) -> draws.Draw | None:
    """The arrays of a draw as rows (G, L, ...), varying as the features `flat` (G, L, D) do."""
    leading, axes = len(features.shape) - 1, varying_axes(flat)
    return jax.tree.map(lambda x: vary(x.reshape(*flat.shape[:2], *x.shape[leading:]), axes), how)


def _prepare(head: Head, query: Query, features: Array) -> tuple[blocks.Settings, Head, Query, Array]:
    """The arguments as (G, L, ...) rows and a head, varying alike over the axes of an enclosing shard_map."""
    groups, length, columns = math.prod(features.shape[:-2]), features.shape[-2], head.kernel.shape[1]

    def by_row(x: Array, trailing: int = 0) -> Array:
        return x.reshape(groups, length, *x.shape[x.ndim - trailing :])

    acc = accumulator(features.dtype)
    rows = dataclasses.replace(
        query,
        ids=None if query.ids is None else by_row(query.ids.astype(jnp.int32), 1),  # pyright: ignore
        shift=None if query.shift is None else by_row(query.shift),
        shift_ids=None if query.shift_ids is None else by_row(query.shift_ids.astype(jnp.int32)),
    ).padded(columns)
    if rows.reduction is not None:
        reduction = jax.tree.map(lambda x: x.astype(acc), rows.reduction)
        rows = dataclasses.replace(rows, reduction=reduction)
        rows = rows.with_reduction(scale=None if reduction.scale is None else by_row(reduction.scale))
    features = by_row(features, 1)
    axes = varying_axes(*jax.tree.leaves((head, rows, features))) - {head.axis_name}
    shared = axes if head.axis_name is None else axes | {head.axis_name}
    head, by_column = jax.tree.map(lambda x: vary(x, shared), (head, rows.by_column()))
    rows, features = jax.tree.map(lambda x: vary(x, axes), (rows.by_row(), features))

    platform, block_rows = targets.current().platform, head.block_rows
    if block_rows is None:
        most = max(1, _BLOCK_BYTES.get(platform, _BLOCK_BYTES["other"]) // (groups * columns * 4))
        least = math.ceil(length / most)
        # Equal blocks, without padding where a few more of them divide the length.
        count = next((n for n in range(least, min(2 * least, length) + 1) if length % n == 0), least)
        block_rows = math.ceil(length / count)
    settings = blocks.Settings(block_rows, fold=platform != "cpu" or features.dtype == jnp.bfloat16)
    return settings, head, rows.joined(by_column), features


def _rows_of_dlogits(head: Head, features: Array) -> int:
    """Of 'pallas': how many rows have their dlogits in memory at a time."""
    if head.block_rows is not None:
        return head.block_rows
    most = _BLOCK_BYTES.get(targets.current().platform, _BLOCK_BYTES["other"])
    return most // (head.kernel.shape[1] * features.dtype.itemsize)


def why_not(
    implementation: str,
    *,
    dtype: Any = jnp.bfloat16,
    split: bool = False,
    target: targets.Target | None = None,
) -> str | None:
    """Why `implementation` cannot take features of this dtype on `target` (by default the present one).

    Args:
        split: whether the vocabulary is split over a mesh axis.

    Returns:
        None where it can; else what is expected instead, to stand after `implementation = ...: `. 'dense' needs the
        whole vocabulary on a device. 'pallas' needs, on a GPU, compute capability 9.0 and bfloat16 or float16;
        elsewhere a loop over the same tiles stands for it. 'blocks' runs anywhere.
    """
    if implementation not in IMPLEMENTATIONS:
        return f"expected {', '.join(IMPLEMENTATIONS)}"
    if implementation == "dense" and split:
        return "expected blocks or pallas where a mesh axis splits the vocabulary"
    target = targets.current() if target is None else target
    if implementation == "pallas" and target.is_gpu:
        if target.capability != CAPABILITY:
            return f"expected a GPU of compute capability 9.0 (H100, H200, GH200), not {target}"
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"expected features of bfloat16 or float16 on a GPU, not {jnp.dtype(dtype)}"
    return None


def _choose(head: Head, features: Array, *, draws: bool = False) -> str:
    chosen = head.implementation or "blocks"
    if draws and chosen == "pallas":
        return "blocks"
    reason = why_not(chosen, dtype=features.dtype, split=head.axis_name is not None)
    if reason is not None:
        raise ValueError(f"implementation = {chosen!r}: {reason}")
    return chosen
