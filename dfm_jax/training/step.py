"""One update: corruption, loss, gradient, optimizer and average. It is a pure function of (state, batch)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from dfm_jax import flow
from dfm_jax.data import Batch
from dfm_jax.experiment.problem import Problem
from dfm_jax.models import head as vocabulary_head
from dfm_jax.models.transformer import Transformer
from dfm_jax.runtime.mesh import BATCH
from dfm_jax.training import learned_schedules
from dfm_jax.training.corruption import NoisyBatch, corrupt
from dfm_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """The settings of a step, besides the problem; hashable."""

    seed: int
    grad_accum: int = 1
    dropout: float = 0.0
    ema_decay: float = 0.0
    head: str | None = None
    unroll: int = 1  # blocks per iteration of the loop over blocks, 0 = all


class Method(NamedTuple):
    """How a problem is trained: the corruption of a batch and the loss on it."""

    corrupt: Callable[..., NoisyBatch]  # (batch, step, problem, *, seed, dropout)
    loss_sum: Callable[..., Array]  # (model, features, batch, problem, *, mesh, head) -> () float32


def get_method(problem: Problem) -> Method:
    """The method of a problem: `learned_schedules` if the path learns its exponents, else one sample of each row."""
    if problem.learns_exponents:
        return Method(learned_schedules.corrupt, learned_schedules.loss_sum)
    return Method(corrupt, loss_sum)


def loss_sum(
    model: Transformer, features: Array, batch: NoisyBatch, problem: Problem, *, mesh: Mesh | None, head: str | None
) -> Array:
    """() float32: the objective in nats, weighted and summed over the positions of `batch`.

    features: (B, L, D) of the model at `batch.x_t`. head: the vocabulary head's implementation; None chooses.
    """
    objective = problem.token_objective

    def nats(answer: flow.HeadAnswer, data: tuple[Array, Array, Array], shared: tuple[flow.Time, Array]) -> Array:
        (x_1, x_t, kept), (time, weight) = data, shared
        return flow.uncharged(objective(answer, x_1, x_t, time) * weight[:, None], kept)

    return vocabulary_head.summed_loss(
        model,
        features,
        objective.query(batch.x_1, batch.x_t, batch.time),
        nats,
        (batch.x_1, batch.x_t, batch.kept),
        (batch.time, batch.weight),
        implementation=head,
        mesh=mesh,
    )


def loss_and_gradient(
    method: Method,
    model: Transformer,
    batch: NoisyBatch,
    problem: Problem,
    settings: StepSettings,
    mesh: Mesh | None,
) -> tuple[Array, Transformer]:
    """The mean loss of the global batch, () float32 nats per predicted token, and its gradient.

    The batch is computed in `grad_accum` parts, one after the other. The gradient has the model's tree, float32.
    """
    predicted = jnp.maximum((~batch.kept).sum(), 1).astype(jnp.float32)

    def total_loss(model: Transformer, rows: NoisyBatch) -> Array:
        time = problem.network_time(rows.time)
        features = model(rows.x_t, time, dropout_keys=rows.dropout_keys, mesh=mesh, unroll=settings.unroll)
        return method.loss_sum(model, features, rows, problem, mesh=mesh, head=settings.head)

    value_and_grad = jax.value_and_grad(total_loss)
    if settings.grad_accum == 1:
        total, gradient = value_and_grad(model, batch)
    else:

        def part(carry: tuple[Array, Transformer], rows: NoisyBatch):
            loss, gradient = value_and_grad(model, rows)
            return jax.tree.map(jnp.add, carry, (loss, gradient)), None

        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, model)
        (total, gradient), _ = jax.lax.scan(part, zeros, split_rows(batch, settings.grad_accum, mesh))
    return total / predicted, jax.tree.map(lambda g: g / predicted, gradient)


def split_rows(batch: NoisyBatch, parts: int, mesh: Mesh | None) -> NoisyBatch:
    """Splits arrays (B, ...) into (parts, B / parts, ...). A part is every parts-th row: rows stay on their device."""

    def split(x: Array) -> Array:
        x = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
        if mesh is None:
            return x
        return jax.lax.with_sharding_constraint(
            x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, *BATCH))
        )

    return jax.tree.map(split, batch)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    problem: Problem,
    optimizer: optax.GradientTransformationExtraArgs,
    settings: StepSettings,
    mesh: Mesh | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """Applies update s = state.step + 1 on a global batch of tokens (B, L) int32. Its noise comes from (seed, s - 1).

    Returns the next state and scalars: `loss` (nats per predicted token), `grad_norm` (before clipping) and
    `bad_steps`. If the loss or the gradient is not finite, only `step` and `bad_steps` change.
    """
    method, here = get_method(problem), problem.given(state.model)
    noisy = method.corrupt(batch, state.step, here, seed=settings.seed, dropout=settings.dropout > 0)
    loss, gradient = loss_and_gradient(method, state.model, noisy, problem, settings, mesh)
    grad_norm = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.model, step=state.step + 1)  # pyright: ignore
    model = jax.tree.map(jnp.add, state.model, updates)
    ema = state.ema
    if ema is not None:
        decay = settings.ema_decay
        ema = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema, model)

    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    keep = (state.model, state.ema, state.opt_state)
    model, ema, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (model, ema, opt_state), keep)
    bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
    state = TrainState(step=state.step + 1, model=model, ema=ema, opt_state=opt_state, bad_steps=bad_steps)
    return state, {"loss": loss, "grad_norm": grad_norm, "bad_steps": bad_steps}
