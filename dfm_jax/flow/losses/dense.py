"""The losses as functions of dense logits (B, L, S), for notebooks, tests and small vocabularies.

Each function evaluates an objective (`flow.get_objective`) with `answer_from_logits`. The trainer evaluates the same
objective with the fused vocabulary head. All return (B, L) nats, which the caller sums or averages. x_1 and x_t are
(B, L) integers; t is (B,), an array or a `Time`. Each raises ValueError for arrays of other shapes.
"""

import jax
import jax.numpy as jnp

from dfm_jax.flow.head import HeadQuery, answer_from_logits
from dfm_jax.flow.losses.objective import Objective, get_objective
from dfm_jax.flow.prediction import PathLike
from dfm_jax.flow.sources import Source, UniformSource
from dfm_jax.flow.time import TimeLike
from dfm_jax.flow.tokens import as_pair, check_tokens


def loss_from_logits(objective: Objective, logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
    """The loss of `objective`, (B, L) nats, for dense `logits` (B, L, S) of its parametrization.

    Raises ValueError when the last axis is not the source's S states, or x_1 and x_t are not integers (B, L).
    """
    check_tokens(logits, x_1, objective.source.num_states)
    x_t, x_1 = as_pair(x_t, x_1, "x_t")
    return objective(answer_from_logits(logits, objective.query(x_1, x_t, t)), x_1, x_t, t)


def cross_entropy(logits: jax.Array, x_1: jax.Array) -> jax.Array:
    """-log post(x_1), (B, L) nats, from posterior logits (B, L, S)."""
    check_tokens(logits, x_1)
    return -answer_from_logits(logits, HeadQuery(jnp.asarray(x_1)[..., None])).at_ids[..., 0]


def generalized_kl(logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike, path: PathLike) -> jax.Array:
    """lambda [1 - post(z) - 1[z != x_1] (1 + log post(x_1))], (B, L) nats, from posterior logits (B, L, S).

    This is the formula on the mixture path (mathematics.md D.2). On another path it is the bound of that path's own
    velocity. Raises ValueError for a path without one.
    """
    source = path.own_source() or UniformSource(logits.shape[-1])
    return loss_from_logits(get_objective("generalized_kl", path=path, source=source), logits, x_1, x_t, t)


def time_reversal_bound(
    logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike, path: PathLike, source: Source
) -> jax.Array:
    """The integrand of the time-reversal bound (`TimeReversal`), (B, L) nats, from LEAVE-ONE-OUT logits (B, L, S)."""
    objective = get_objective("time_reversal", path=path, source=source, parametrization="leave_one_out")
    return loss_from_logits(objective, logits, x_1, x_t, t)


def masked_elbo(
    logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike, path: PathLike, source: Source
) -> jax.Array:
    """lambda 1[z = m] (-log post(x_1)), (B, L) nats, from logits (B, L, V + 1); the logit of the mask is ignored."""
    objective = get_objective("masked_elbo", path=path, source=source, suppress_mask=True)
    return loss_from_logits(objective, logits, x_1, x_t, t)


def to_posterior(logits: jax.Array, x_t: jax.Array, t: TimeLike, path: PathLike, source: Source) -> jax.Array:
    """Posterior logits from leave-one-out ones: logits + 1[v = z] log1p(kappa / (sigma p(z))), (B, L, S).

    With the mask source the logit of the mask is ignored. On the mixture and GenMD4 paths every token that is not the
    mask is then carried over: its posterior is delta_z, with z = x_t. At t = 1 the added amount is infinite and is
    capped, so that the posterior is delta_z up to exp(-60) (mathematics.md D.3).
    Raises ValueError when the last axis is not S, or the path does not support leave-one-out logits.
    """
    check_tokens(logits, x_t, source.num_states)
    return path.prediction(source, "leave_one_out").posterior_logits(logits, x_t, t)
