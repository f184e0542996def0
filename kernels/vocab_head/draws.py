"""One token per row from the vocabulary head, by an inverse CDF of two levels in blocks of rows; how sure the head is.

A float32 cumulative sum over 50257 tokens, or one Gumbel per token on a 2^-23 grid, loses the tail of the law
(mathematics.md E.4: tokens below 2^-22 get a quarter of their mass). Two levels do not: one uniform picks a group of
tokens by the groups' masses, a second one the token within the group, each sum being short.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .blocks import Settings, logits_of, prepare, scan_rows
from .shards import first_column, gather_shards, over_shards, sum_over_shards, vary, varying_axes
from .types import Drawn, Head, Query

GROUP = 128  # tokens; the stored vocabulary is a multiple of it


class Draw(NamedTuple):
    """What a row's draw needs beside its logits, (G, L, ...)."""

    words: Array  # (G, L, 2) uint32
    temperature: Array  # (G, L) float32


def sample(settings: Settings, head: Head, query: Query, features: Array, draw: Draw | None, top_p: float) -> Array:
    """(G, L) int32: a token per row, the most probable one where `draw` is None."""
    head = prepare(head, query, features.dtype)

    def block(operands: tuple[Query, Array, Draw | None]) -> Array:
        rows, features, draw = operands
        logits = logits_of(head, rows, features).astype(jnp.float32)
        return _token(head.axis_name, logits, draw, top_p)

    rows = Query(shift=query.shift, shift_ids=query.shift_ids)
    return scan_rows(settings, (rows, features, draw), block)


def draw(
    settings: Settings, head: Head, query: Query, features: Array, how: Draw | None, top_p: float, asked: frozenset[str]
) -> Drawn:
    """What `sample` gives, and what is `asked` of the law before temperature and top-p, from the same logits."""
    head = prepare(head, query, features.dtype)

    def block(operands: tuple[Query, Array, Draw | None]) -> Drawn:
        rows, features, how = operands
        logits = logits_of(head, rows, features).astype(jnp.float32)
        return _look(head, logits, _token(head.axis_name, logits, how, top_p), rows.ids, asked)

    rows = Query(ids=query.ids, shift=query.shift, shift_ids=query.shift_ids)
    return scan_rows(settings, (rows, features, how), block)


def _look(head: Head, logits: Array, token: Array, ids: Array | None, asked: frozenset[str]) -> Drawn:
    """The answers of one block, logits (G, R, V), token (G, R), ids (G, R, K). All exponentials are taken once."""
    axis_name = head.axis_name
    local_peak = jnp.maximum(logits.max(-1), jnp.finfo(logits.dtype).min)
    below = logits - local_peak[..., None]
    exponentials = jnp.exp(below)
    wanted = [token[..., None]] if ids is None else [token[..., None], ids]
    places = jnp.concatenate(wanted, -1) - first_column(head)
    inside = (places >= 0) & (places < logits.shape[-1])
    picked = jnp.take_along_axis(logits, jnp.where(inside, places, 0), -1)
    picked = jnp.where(inside, picked, 0.0 if axis_name is not None else -jnp.inf)
    peak, mass, picked = over_shards(axis_name, local_peak, exponentials.sum(-1), picked)
    log_probs = (picked - peak[..., None]) - jnp.log(mass)[..., None]
    answer: dict[str, Array] = {"token": token}
    if "log_prob" in asked:
        answer["log_prob"] = log_probs[..., 0]
    if ids is not None:
        answer["at_ids"] = log_probs[..., 1:]
    if "entropy" in asked:
        # - sum p log p, with p log p = 0 where p = 0. Every shard adds its own part, below the common peak.
        offset = (local_peak - peak)[..., None]
        own = jnp.where(exponentials > 0, exponentials * jnp.exp(offset) * (below + offset), 0.0).sum(-1)
        answer["entropy"] = jnp.maximum(jnp.log(mass) - sum_over_shards(axis_name, own) / mass, 0.0)
    if "top_two" in asked:
        first = logits.max(-1)
        ties = (logits == first[..., None]).sum(-1)
        second = jnp.where(ties > 1, first, jnp.where(logits < first[..., None], logits, -jnp.inf).max(-1))
        two = jnp.stack([first, second], -1)
        if axis_name is not None:
            (shards,) = gather_shards(axis_name, two)
            every = jnp.moveaxis(shards, 0, -2).reshape(*two.shape[:-1], -1)
            two = jax.lax.top_k(every, 2)[0]
        answer["top_two"] = jnp.exp(two - peak[..., None]) / mass[..., None]
    return Drawn(**answer)


def _token(axis_name: str | None, logits: Array, draw: Draw | None, top_p: float) -> Array:
    if draw is None:
        return _most_probable(axis_name, logits)
    return _inverse_cdf(axis_name, logits / draw.temperature[..., None], _uniforms(draw.words), top_p)


def _most_probable(axis_name: str | None, logits: Array) -> Array:
    """The first column of the largest logit."""
    # Two plain reductions: XLA does not vectorise the pair reduction of jnp.argmax on a CPU.
    peak = logits.max(-1)
    columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    best = jnp.where(logits == peak[..., None], columns, logits.shape[-1] - 1).min(-1)
    if axis_name is None:
        return best
    values, shards = gather_shards(axis_name, peak, best.astype(logits.dtype))
    shard = jnp.argmax(values, axis=0)[None]
    return jnp.take_along_axis(shards, shard, 0)[0].astype(jnp.int32) + shard[0] * logits.shape[-1]


def _uniforms(words: Array) -> Array:
    """uint32 -> float32 on the grid of 2^-24 in [0, 1)."""
    return (words >> 8).astype(jnp.float32) * 2.0**-24


def _inverse_cdf(axis_name: str | None, logits: Array, uniforms: Array, top_p: float) -> Array:
    peak = jnp.maximum(logits.max(-1), jnp.finfo(logits.dtype).min)
    if axis_name is not None:
        peak = jax.lax.pmax(peak, axis_name)
    mass = jnp.exp(logits - peak[..., None])
    if top_p < 1.0:
        mass = jnp.where(mass >= _nucleus(axis_name, mass, top_p)[..., None], mass, 0.0)
    columns = mass.shape[-1]
    mass = jnp.pad(mass, ((0, 0), (0, 0), (0, -columns % GROUP)))
    groups = mass.reshape(*mass.shape[:-1], -1, GROUP)
    sums = groups.sum(-1)
    if axis_name is not None:
        (shards,) = gather_shards(axis_name, sums)
        sums = jnp.moveaxis(shards, 0, -2).reshape(*sums.shape[:-1], -1)
    group = _search(sums, uniforms[..., 0])
    shard, here = group // groups.shape[-2], group % groups.shape[-2]
    tokens = jnp.take_along_axis(groups, here[..., None, None], axis=-2)[..., 0, :]
    token = _search(tokens, uniforms[..., 1])
    if axis_name is not None:
        mine = shard == jax.lax.axis_index(axis_name)
        token = jax.lax.psum(jnp.where(mine, token, 0), axis_name)
    return shard * columns + here * GROUP + token


def _search(mass: Array, uniform: Array) -> Array:
    """The first index whose cumulative mass exceeds uniform * total; never one of mass zero."""
    total = jnp.cumsum(mass, axis=-1)
    found = (total > uniform[..., None] * total[..., -1:]) & (mass > 0)
    # A parallel prefix sum need not increase with the index, so its last entry need not be its largest.
    index = jnp.where(found.any(-1), jnp.argmax(found, axis=-1), jnp.argmax(mass, axis=-1))
    return index.astype(jnp.int32)


def _nucleus(axis_name: str | None, mass: Array, top_p: float) -> Array:
    """The largest threshold such that the tokens at or above it have top_p of the mass; ties are all kept.

    By bisection on the bits of positive float32 numbers, which are ordered as integers: 31 passes, no sort.
    """

    def at_or_above(bits: Array) -> Array:
        threshold = jax.lax.bitcast_convert_type(bits, jnp.float32)
        kept = jnp.where(mass >= threshold[..., None], mass, 0.0).sum(-1)
        return kept if axis_name is None else jax.lax.psum(kept, axis_name)

    low = jnp.zeros(mass.shape[:-1], jnp.int32)  # satisfies: everything is kept
    high = jnp.full_like(low, jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32) + 1)
    wanted = top_p * at_or_above(low)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = at_or_above(middle) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    axes = varying_axes(wanted)
    low, _ = jax.lax.fori_loop(0, 31, halve, (vary(low, axes), vary(high, axes)))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
