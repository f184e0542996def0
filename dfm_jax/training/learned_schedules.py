"""The gradient of a bound in the exponents of its path (GenMD4): REINFORCE with leave-one-out baselines.

The bound E_{x_t ~ q_w} sum_i f_i(x_t) depends on w through f and the law of x_t. Each x_1 gets two samples of x_t
at one time, a batch of twice the rows, and each sample is the other's baseline. With m_j = 1 where x_t is masked at j,
of probability q_j, and g_i a guess of f_i where masked that knows nothing of this x_t, an unbiased gradient is

    sum_i grad f_i + sum_j [(m_j - 1 + q_j) g_j + sum_i m_i (f_i - g_i)] grad log q(m_j) - (m_j - q_j) g_j grad log w_j.

The score of j keeps of the other positions what was not guessed, and of j itself what leaves no variance where the
guess is right; grad f_j is near f_j grad log w_j, of which the last term takes the noise of m_j.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from dfm_jax import flow
from dfm_jax.data import Batch
from dfm_jax.experiment.problem import Problem
from dfm_jax.models import head as vocabulary_head
from dfm_jax.models.transformer import Transformer
from dfm_jax.runtime.rng import noise_key
from dfm_jax.training import corruption
from dfm_jax.training.corruption import NoisyBatch


def corrupt(batch: Batch, step: Array | int, problem: Problem, *, seed: int, dropout: bool) -> NoisyBatch:
    """As `corruption.corrupt`, with a second sample of x_t for each row: 2 B rows."""
    first = corruption.corrupt(batch, step, problem, seed=seed, dropout=dropout)
    return second_sample(first, noise_key(seed, "source", step), problem)


def second_sample(batch: NoisyBatch, key: Array, problem: Problem) -> NoisyBatch:
    """`batch` followed by itself (2 B rows) with other noise on the path; row i and row B + i are a pair."""
    x_0 = problem.source.sample(key, batch.x_1.shape)  # the mask: no randomness is used twice
    x_t, _ = corruption.x_t(batch.x_1, batch.kept, x_0, batch.time, key, problem)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, batch._replace(x_t=x_t))


def loss_sum(
    model: Transformer, features: Array, batch: NoisyBatch, problem: Problem, *, mesh: Mesh | None, head: str | None
) -> Array:
    """As `step.loss_sum`, over the 2 B rows; its gradient in the exponents is the one stated above."""
    path: Any = problem.path
    path = path.with_exponents(jnp.exp(without_common_factor(model, batch)))
    objective = dataclasses.replace(problem.objective, path=path)
    answer = vocabulary_head.answer(
        model,
        features,
        objective.query(batch.x_1, batch.x_t, batch.time),
        implementation=head,
        mesh=mesh,
    )
    nats = flow.uncharged(objective(answer, batch.x_1, batch.x_t, batch.time) * batch.weight[:, None], batch.kept)
    log_q = flow.uncharged(path.log_probability(batch.x_t, batch.x_1, batch.time), batch.kept)
    all_masked = jnp.full_like(batch.x_t, path.vocab_size)
    q = flow.uncharged(jnp.exp(path.log_probability(all_masked, batch.x_1, batch.time)), batch.kept)
    w = path.weights(batch.x_1, nats.dtype)
    clock = path.scheduler(batch.time)
    rate = path.rate(batch.x_1, clock.alpha_t[:, None], clock.sigma_t[:, None])
    scale = rate * (clock.d_alpha_t * batch.weight)[:, None]
    masked = (batch.x_t != batch.x_1) & ~batch.kept
    of_score, of_exponent = jax.lax.stop_gradient(coefficients(nats, masked, q, scale))
    # These terms are 0, their gradients are not.
    score, exponent = (x - jax.lax.stop_gradient(x) for x in (log_q, jnp.log(w)))
    return (nats + of_score * score + of_exponent * exponent).sum()


def coefficients(nats: Array, masked: Array, q: Array, scale: Array) -> tuple[Array, Array]:
    """What multiplies the gradients of log q(m_j) and of log w_j beside that of nats, each (2 B, L) float32.

    nats (2 B, L): f, 0 where not `masked`; q, scale (2 B, L): the probability of a mask and f / -log p for equal w.
    """
    m = masked.astype(nats.dtype)
    # -log p where masked; the guess is the other sample's, else the mean of that row and one more, the batch's mean.
    log_p = jnp.where(masked & (scale > 0) & (scale < jnp.inf), nats / scale, 0.0)

    def others(x: Array) -> Array:
        """(2 B, 1): the sum over all rows but the pair's."""
        row = x.sum(-1, keepdims=True)
        return row.sum() - row - jnp.roll(row, len(x) // 2, axis=0)

    mean = others(log_p) / jnp.maximum(others(m), 1.0)
    other, other_m = (jnp.roll(x, len(x) // 2, axis=0) for x in (log_p, m))
    pooled = (other.sum(-1, keepdims=True) + mean) / (other_m.sum(-1, keepdims=True) + 1)
    guess = jnp.where(other_m > 0, other, pooled) * jnp.where(scale < jnp.inf, scale, 0.0)
    residual = (nats - m * guess).sum(-1, keepdims=True)
    return residual + (m - 1 + q) * guess, (q - m) * guess


def without_common_factor(model: Transformer, batch: NoisyBatch) -> Array:
    """log w (V,) float32, whose gradient has no part along the mean of log w over the tokens of `batch`.

    A factor common to all w is another clock, on which no bound depends: along it the gradient is noise.
    """
    log_w = jnp.log(model.exponents())
    charged = (~batch.kept).astype(log_w.dtype)
    mean = (log_w[batch.x_1] * charged).sum() / jnp.maximum(charged.sum(), 1.0)
    return log_w - (mean - jax.lax.stop_gradient(mean))
