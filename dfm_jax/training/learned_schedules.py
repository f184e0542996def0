"""The gradient of a bound in the exponents of its path (GenMD4): REINFORCE with a leave-one-out baseline.

The bound E_{x_t ~ q_w} f_w(x_t) depends on w through f and through the law of x_t. With two samples of x_t per x_1,

    grad = 1/2 sum_i [ grad f(x_i) + (f(x_i) - f(x_{3-i})) grad log q_w(x_i) ],

unbiased, each sample the other's baseline. It costs a batch of twice the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from dfm_jax import flow
from dfm_jax.models import head
from dfm_jax.models.transformer import Transformer
from dfm_jax.problem import Problem

if TYPE_CHECKING:
    from dfm_jax.training.step import NoisyBatch, StepSettings


def second_sample(batch: NoisyBatch, key: Array, problem: Problem) -> NoisyBatch:
    """`batch` followed by itself (2 B rows) with other noise on the path; row i and row B + i are a pair."""
    x_0 = problem.source.sample(key, batch.x_1.shape)  # the mask: no randomness is used twice
    x_t = problem.path.sample(key, x_0, batch.x_1, batch.time).x_t
    second = batch._replace(x_t=flow.conditional_coupling(x_t, batch.x_1, batch.kept))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, second)


def loss_sum(
    model: Transformer, batch: NoisyBatch, problem: Problem, settings: StepSettings, mesh: Mesh | None
) -> Array:
    """() float32: the objective summed over the positions of the 2 B rows, with the gradient above in the exponents."""
    problem = problem.given(model)
    objective, path = problem.objective, problem.path
    assert isinstance(path, flow.GenMD4ProbPath)
    time = problem.network_time(batch.time)
    features = model(batch.x_t, time, dropout_keys=batch.dropout_keys, mesh=mesh, unroll=settings.unroll)
    answer = head.answer(
        model,
        features,
        objective.query(batch.x_1, batch.x_t, batch.time),
        implementation=settings.head,
        mesh=mesh,
    )
    nats = objective(answer, batch.x_1, batch.x_t, batch.time) * batch.weight[:, None]
    row = flow.uncharged(nats, batch.kept).sum(-1)
    log_q = flow.uncharged(path.log_probability(batch.x_t, batch.x_1, batch.time), batch.kept).sum(-1)
    advantage = jax.lax.stop_gradient(row - jnp.roll(row, len(row) // 2))
    # The second term is 0, its gradient is not.
    return (row + advantage * (log_q - jax.lax.stop_gradient(log_q))).sum()
