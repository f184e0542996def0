"""One update: noise, loss and gradient of a global batch, optimiser, average. A pure function of (state, tokens)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from dfm_jax import flow, sharding
from dfm_jax.models import head
from dfm_jax.models.transformer import Transformer
from dfm_jax.problem import Problem
from dfm_jax.rng import noise_key
from dfm_jax.training import learned_schedules
from dfm_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What the step needs besides the problem; hashable."""

    seed: int
    grad_accum: int = 1
    dropout: float = 0.0
    ema_decay: float = 0.0
    head: str | None = None
    unroll: int = 1  # blocks per turn of the loop over them, 0 = all


class NoisyBatch(NamedTuple):
    """A batch on the path: everything random about an update but the dropout masks, which are keyed by row."""

    x_1: Array  # (B, L) int32
    x_t: Array  # (B, L) int32
    kept: Array  # (B, L) bool, positions that were given and carry no loss
    time: flow.Time  # t and r of (B,) float32
    weight: Array  # (B,) float32, of the losses at that time
    dropout_keys: Array | None  # (B,) typed keys


def corrupt(tokens: Array, step: Array | int, problem: Problem, settings: StepSettings) -> NoisyBatch:
    """x_t ~ p_t(. | x_0, x_1) for a global batch of tokens (B, L), keyed by (seed, step, purpose) alone."""

    def key(purpose: str) -> Array:
        return noise_key(settings.seed, purpose, step)

    batch, length = tokens.shape
    time, weight = flow.sample_times(
        key("time"),
        batch,
        law=problem.time_law,
        method=problem.time_sampling,
        epsilon=problem.time_epsilon,
        scheduler=problem.path.scheduler,
    )
    pair = problem.coupling.sample(key("coupling"), tokens, problem.source)
    mask_id = problem.source.mask_id
    if problem.counts_masks and mask_id is not None:
        # The count form has no time: a random number of masks, and L over it as the weight (mathematics.md D.5).
        masked = flow.mask_uniform_subset(key("path"), tokens, mask_id)
        weight = length / (masked == mask_id).sum(-1).astype(jnp.float32)
        x_t = flow.conditional_coupling(masked, tokens, pair.kept)
    else:
        x_t = problem.path.sample(key("path"), pair.x_0, tokens, time).x_t
        x_t = flow.conditional_coupling(x_t, tokens, pair.kept)  # a path with noise of its own leaves x_0 and x_1
    keys = jax.random.split(key("dropout"), batch) if settings.dropout else None
    noisy = NoisyBatch(tokens, x_t, pair.kept, time, weight, keys)
    return learned_schedules.second_sample(noisy, key("source"), problem) if problem.learns_exponents else noisy


def loss_sum(
    model: Transformer, batch: NoisyBatch, problem: Problem, settings: StepSettings, mesh: Mesh | None
) -> Array:
    """() float32: the objective in nats, weighted and summed over the positions of `batch`."""
    objective = problem.token_objective

    def nats(answer: flow.HeadAnswer, data: tuple[Array, Array, Array], shared: tuple[flow.Time, Array]) -> Array:
        (x_1, x_t, kept), (time, weight) = data, shared
        return flow.uncharged(objective(answer, x_1, x_t, time) * weight[:, None], kept)

    time = problem.network_time(batch.time)
    features = model(batch.x_t, time, dropout_keys=batch.dropout_keys, mesh=mesh, unroll=settings.unroll)
    return head.summed_loss(
        model,
        features,
        objective.query(batch.x_1, batch.x_t, batch.time),
        nats,
        (batch.x_1, batch.x_t, batch.kept),
        (batch.time, batch.weight),
        implementation=settings.head,
        mesh=mesh,
    )


def loss_and_gradient(
    model: Transformer, batch: NoisyBatch, problem: Problem, settings: StepSettings, mesh: Mesh | None
) -> tuple[Array, Transformer]:
    """Mean loss in nats per predicted token of the global batch and its gradient, in `grad_accum` parts."""
    predicted = (~batch.kept).sum().astype(jnp.float32)
    value_and_grad = jax.value_and_grad(learned_schedules.loss_sum if problem.learns_exponents else loss_sum)
    if settings.grad_accum == 1:
        total, gradient = value_and_grad(model, batch, problem, settings, mesh)
    else:

        def part(carry: tuple[Array, Transformer], rows: NoisyBatch):
            loss, gradient = value_and_grad(model, rows, problem, settings, mesh)
            return jax.tree.map(jnp.add, carry, (loss, gradient)), None

        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, model)
        (total, gradient), _ = jax.lax.scan(part, zeros, split_rows(batch, settings.grad_accum, mesh))
    return total / predicted, jax.tree.map(lambda g: g / predicted, gradient)


def split_rows(batch: NoisyBatch, parts: int, mesh: Mesh | None) -> NoisyBatch:
    """(B, ...) -> (parts, B / parts, ...). Part i takes every parts-th row, so that each device keeps its own."""

    def split(x: Array) -> Array:
        x = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
        if mesh is None:
            return x
        return jax.lax.with_sharding_constraint(
            x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, *sharding.BATCH))
        )

    return jax.tree.map(split, batch)


def train_step(
    state: TrainState,
    tokens: Array,
    *,
    problem: Problem,
    optimizer: optax.GradientTransformationExtraArgs,
    settings: StepSettings,
    mesh: Mesh | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """Update s = state.step + 1 on tokens (B, L) int32, with the noise of (seed, s - 1).

    Returns the next state and scalars: `loss` (nats per predicted token), `grad_norm` (before clipping) and
    `bad_steps`. An update whose loss or gradient is not finite changes nothing but `step` and `bad_steps`.
    """
    batch = corrupt(tokens, state.step, problem.given(state.model), settings)
    loss, gradient = loss_and_gradient(state.model, batch, problem, settings, mesh)
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
