"""The random part of a batch: its times, its pair (x_0, x_1), and x_t (mathematics.md B, D.5)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dfm_jax import flow
from dfm_jax.data import Batch
from dfm_jax.experiment.problem import Problem
from dfm_jax.runtime.rng import noise_key


class NoisyBatch(NamedTuple):
    """A batch at times on the path. It holds all randomness of an update; `dropout_keys` make the dropout masks."""

    x_1: Array  # (B, L) int32
    x_t: Array  # (B, L) int32
    kept: Array  # (B, L) bool, positions that carry no loss: fixed ones, and padding
    time: flow.Time  # t and r of (B,) float32
    weight: Array  # (B,) float32, the weight of each row's loss
    dropout_keys: Array | None  # (B,) typed keys


def x_t(
    tokens: Array, given: Array, x_0: Array, time: flow.Time, key: Array, problem: Problem
) -> tuple[Array, Array | None]:
    """Draws x_t ~ p_t(. | x_0, x_1) of a batch, and the weights of its rows if they do not come from the times.

    The count form has no time. It masks a random number n of each row's L positions, and the row's weight is L / n
    (mathematics.md D.5). The given positions are then shown again. So each other position is masked with probability
    n / L and has the weight L / n.

    Args:
        tokens: (B, L) int32, x_1.
        given: (B, L) bool, positions where x_t is x_1.
        x_0: (B, L) int32.
        time: t and 1 - t of (B,) float32.
        key: one key, or (B,) keys, one per row.

    Returns: x_t (B, L) int32, and the weights (B,) float32 of the count form, or None with every other objective.
        The weights belong to `problem.token_objective`.
    """
    mask_id = problem.source.mask_id
    if problem.counts_masks and mask_id is not None:
        corrupted = flow.mask_uniform_subset(key, tokens, mask_id)
        weight = tokens.shape[1] / (corrupted == mask_id).sum(-1).astype(jnp.float32)
    else:
        corrupted, weight = problem.path.sample(key, x_0, tokens, time).x_t, None
    # A path with its own noise may give another token even where x_0 = x_1.
    return flow.conditional_coupling(corrupted, tokens, given), weight


def corrupt(batch: Batch, step: Array | int, problem: Problem, *, seed: int, dropout: bool) -> NoisyBatch:
    """Draws everything random of update `step` + 1 on a global batch of tokens (B, L) int32.

    All keys come from (seed, step, purpose) alone. The positions that the batch gives are fixed, and those that the
    coupling fixes. dropout: also make keys for dropout.
    """

    def key(purpose: str) -> Array:
        return noise_key(seed, purpose, step)

    tokens = batch.tokens
    time, weight = flow.sample_times(
        key("time"),
        len(tokens),
        law=problem.time_law,
        method=problem.time_sampling,
        epsilon=problem.time_epsilon,
        scheduler=problem.path.scheduler,
    )
    pair = problem.coupling.sample(key("coupling"), tokens, problem.source)
    kept = pair.kept if batch.given is None else pair.kept | batch.given
    corrupted, counted = x_t(tokens, kept, pair.x_0, time, key("path"), problem)
    keys = jax.random.split(key("dropout"), len(tokens)) if dropout else None
    if batch.scored is not None:
        kept = kept | ~batch.scored
    return NoisyBatch(tokens, corrupted, kept, time, weight if counted is None else counted, keys)
