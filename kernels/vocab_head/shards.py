"""Operations for a vocabulary that is split over the devices of a mesh axis, inside `jax.shard_map`."""

import jax
import jax.numpy as jnp
from jax import Array

from .types import Head


def first_column(head: Head) -> Array | int:
    """The id of this shard's first column."""
    if head.axis_name is None:
        return 0
    return jax.lax.axis_index(head.axis_name) * head.kernel.shape[1]


def over_shards(axis_name: str | None, peak: Array, mass: Array, picked: Array) -> tuple[Array, Array, Array]:
    """Maximum, sum of exponentials and logits at the ids, of the whole vocabulary from those of each shard.

    mass is the sum of exp(logit - peak). picked is 0 for ids of other shards.
    """
    if axis_name is None:
        return peak, mass, picked
    peaks, masses, picked = gather_shards(axis_name, peak, mass, picked)
    peak = peaks.max(0)
    return peak, (masses * jnp.exp(peaks - peak[None])).sum(0), picked.sum(0)


def gather_shards(axis_name: str, *values: Array) -> list[Array]:
    """Each (...) -> (shards, ...), the same on every shard, in one collective.

    It is a sum of one-hot slots instead of an all-gather, because jax knows that a sum is replicated.
    """
    flat = jnp.concatenate([value.reshape(-1) for value in values])
    slots = jnp.zeros((jax.lax.axis_size(axis_name), flat.size), flat.dtype)
    slots = jax.lax.psum(jax.lax.dynamic_update_index_in_dim(slots, flat, jax.lax.axis_index(axis_name), 0), axis_name)
    parts = jnp.split(slots, list(_offsets([value.size for value in values])), axis=1)
    return [part.reshape(slots.shape[0], *value.shape) for part, value in zip(parts, values, strict=True)]


def _offsets(sizes: list[int]) -> list[int]:
    return [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]


def sum_over_shards(axis_name: str | None, value: Array) -> Array:
    """The sum of `value` over the shards; `value` itself if the vocabulary is not split."""
    return value if axis_name is None else jax.lax.psum(value, axis_name)


def vary(x: Array, axes) -> Array:
    """Marks x as different on the devices along `axes` of an enclosing shard_map. Its gradient is then summed there."""
    missing = tuple(sorted(frozenset(axes) - varying_axes(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def varying_axes(*arrays: Array) -> frozenset[str]:
    """The axes of an enclosing shard_map along which any of the arrays may differ between devices."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))
