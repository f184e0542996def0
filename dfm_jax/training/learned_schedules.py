"""The gradient of a bound in the exponents w of its path (GenMD4): REINFORCE with leave-one-out baselines.

The bound E_{x_t ~ q_w} sum_i f_i(x_t) depends on w through f and through the law of x_t. Each x_1 gets two samples of
x_t at one time, so a batch has twice the rows, and each sample is the baseline of the other. Let m_j = 1 where x_t is
masked at j, with probability q_j. Let g_i be a guess of f_i, in case i is masked, that does not depend on this x_t.
Then an unbiased gradient is

    sum_i grad f_i + sum_j [(m_j - 1 + q_j) g_j + sum_i m_i (f_i - g_i)] grad log q(m_j) - (m_j - q_j) g_j grad log w_j.

The guesses reduce the variance. If a guess is right, the other positions drop out of the score of j, and the term of j
itself has no variance. grad f_j is close to f_j grad log w_j, and the last term removes the noise of m_j from it.
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
    """As `corruption.corrupt`, with a second sample of x_t for each row. The result has 2 B rows."""
    first = corruption.corrupt(batch, step, problem, seed=seed, dropout=dropout)
    return second_sample(first, noise_key(seed, "source", step), problem)


def second_sample(batch: NoisyBatch, key: Array, problem: Problem) -> NoisyBatch:
    """`batch` followed by a copy with another sample of x_t: 2 B rows, where rows i and B + i are a pair."""
    x_0 = problem.source.sample(key, batch.x_1.shape)  # always the mask, so the key is not used twice
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
    # These terms are 0, but their gradients are not.
    score, exponent = (x - jax.lax.stop_gradient(x) for x in (log_q, jnp.log(w)))
    return (nats + of_score * score + of_exponent * exponent).sum()


def coefficients(nats: Array, masked: Array, q: Array, scale: Array) -> tuple[Array, Array]:
    """The factors of grad log q(m_j) and of grad log w_j in the gradient above, each (2 B, L) float32.

    nats: (2 B, L), f, which is 0 where not `masked`. q: (2 B, L), the probability of a mask. scale: (2 B, L), the
    factor between f and -log p for equal w.
    """
    m = masked.astype(nats.dtype)
    # -log p where masked. The guess is the other sample's value, or, if that is not masked, the mean of that row with
    # the mean of the batch as one more value.
    log_p = jnp.where(masked & (scale > 0) & (scale < jnp.inf), nats / scale, 0.0)

    def others(x: Array) -> Array:
        """The sum over all rows except the pair itself, (2 B, 1)."""
        row = x.sum(-1, keepdims=True)
        return row.sum() - row - jnp.roll(row, len(x) // 2, axis=0)

    mean = others(log_p) / jnp.maximum(others(m), 1.0)
    other, other_m = (jnp.roll(x, len(x) // 2, axis=0) for x in (log_p, m))
    pooled = (other.sum(-1, keepdims=True) + mean) / (other_m.sum(-1, keepdims=True) + 1)
    guess = jnp.where(other_m > 0, other, pooled) * jnp.where(scale < jnp.inf, scale, 0.0)
    residual = (nats - m * guess).sum(-1, keepdims=True)
    return residual + (m - 1 + q) * guess, (q - m) * guess


def without_common_factor(model: Transformer, batch: NoisyBatch) -> Array:
    """log w (V,) float32. Its gradient has no part along the mean of log w over the tokens of `batch`.

    A factor common to all w only changes the clock, and no bound depends on the clock. The gradient along it is noise.
    """
    log_w = jnp.log(model.exponents())
    charged = (~batch.kept).astype(log_w.dtype)
    mean = (log_w[batch.x_1] * charged).sum() / jnp.maximum(charged.sum(), 1.0)
    return log_w - (mean - jax.lax.stop_gradient(mean))
