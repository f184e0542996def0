"""The compiled loop over the steps: which positions need x_1, the model if any does, the new tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow import categorical
from dfm_jax.flow.samplers.denoiser import Denoiser, draw_where
from dfm_jax.flow.samplers.step import Needs, Step, is_uniform
from dfm_jax.flow.tree import Kept


def run(
    denoiser: Denoiser,
    carries_over: bool,
    keys: jax.Array,
    x: jax.Array,
    fixed: jax.Array,
    rows: dict[str, jax.Array],
    step: Step,
    source: Any,
    *,
    group: int,
    slots: int,
) -> tuple[jax.Array, jax.Array]:
    """Runs all `rows` of a plan on x (B, L) int32. Returns the final x, and the states (slots, B, L) of rows["slot"].

    carries_over: with the mask source, a token that is not the mask is x_1. keys: (B,), one per sequence. fixed: (B, L)
    bool, positions that keep their token. rows: name -> (M,), one entry per model evaluation. group: rows per call of
    the vocabulary head (static).
    """
    source = Kept.unwrap(source)
    batch, length = x.shape
    hidden = source.mask_id if carries_over else None

    def one_step(carry, row):
        x, saved = carry
        step_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, row["number"]), 3))(keys)
        bits = jax.vmap(lambda key: jax.random.bits(key, (step.words, length), jnp.uint32))(step_keys[:, 0])
        u = categorical.uniform(jnp.moveaxis(bits, 1, 0))
        y = fresh_tokens(step.fresh, source, step_keys[:, 1], x)
        x_1 = x
        if Needs.DRAWS in step.needs:
            needed = step.needs_x_1(row, x, u, source) & ~fixed
            if hidden is not None:
                needed &= x == hidden
            t = jnp.broadcast_to(row["time"], (batch,))
            x_1 = draw_where(denoiser, step_keys[:, 2], x, t, needed, group).x_1
        x = jnp.where(fixed, x, step.transition(row, x, x_1, u, y, source))
        if slots:
            saved = saved.at[row["slot"]].set(x, mode="drop")
        return (x, saved), None

    # Every slot starts as x_init, which is the state at the first point of the grid.
    saved = jnp.broadcast_to(x[None], (slots, batch, length))
    (x, saved), _ = jax.lax.scan(one_step, (x, saved), rows)
    return x, saved


def fresh_tokens(kind: str, source: Any, keys: jax.Array, x: jax.Array) -> jax.Array:
    """The fresh tokens y (B, L) of a step, with z = x (B, L) and keys (B,), one per sequence.

    kind: 'none' gives x itself, 'source' y ~ p, 'others' y ~ p given y != z, 'data' a uniform data token, 'data_others'
    a uniform data token other than z. 'others' holds for mask and uniform sources. For a general source y ~ p, and y
    may be z; then nothing moves.
    """
    if kind == "none":
        return x
    if kind in ("data", "data_others"):
        size = source.vocab_size
        fresh = jax.vmap(lambda key: jax.random.randint(key, x.shape[1:], 0, size, jnp.int32))(keys)
        if kind == "data":
            return fresh
        skip = jax.vmap(lambda key: jax.random.randint(key, x.shape[1:], 1, size, jnp.int32))(keys)
        return jnp.where(x < size, (x + skip) % size, fresh)
    if source.mask_id is not None:
        return jnp.full(x.shape, source.mask_id, x.dtype)
    if kind == "others" and is_uniform(source):
        states = source.num_states
        skip = jax.vmap(lambda key: jax.random.randint(key, x.shape[1:], 1, states, jnp.int32))(keys)
        return (x + skip) % states
    return jax.vmap(lambda key: source.sample(key, x.shape[1:]))(keys).astype(x.dtype)


def group_size(expected: np.ndarray) -> int:
    """The cheapest number of rows per call of the head, for `expected` (M,) jumps in each step.

    A call costs its rows and a fixed part, for reading the head's weights. On CPUs and GPUs the fixed part is worth
    about 64 rows.
    """
    sizes = 2 ** np.arange(3, 11)
    calls = np.ceil((expected + np.sqrt(expected)) / sizes[:, None])
    return int(sizes[(calls * (sizes[:, None] + 64)).sum(-1).argmin()])
