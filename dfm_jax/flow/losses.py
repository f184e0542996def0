"""The losses as functions of dense logits (B, L, S), for notebooks, tests and small vocabularies.

Each is its objective (`flow.objectives`) answered by `answer_from_logits`; the trainer has the same objective answered
by the fused head. All return (B, L) nats; the caller reduces. t is (B,), an array or a `Time`.
"""

import jax
import jax.numpy as jnp

from dfm_jax.flow.evidence import evidence
from dfm_jax.flow.head import answer_from_logits
from dfm_jax.flow.objectives import CrossEntropy, GeneralizedKL, MaskedELBO, Objective, TimeReversal
from dfm_jax.flow.paths import MixtureDiscreteProbPath, check_tokens
from dfm_jax.flow.schedulers_polynomial import CondOTScheduler
from dfm_jax.flow.sources import Source, UniformSource
from dfm_jax.flow.time import TimeLike, as_time, expand, floating


def loss_from_logits(objective: Objective, logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
    """`objective` for dense `logits` (B, L, S) of its parametrization, (B, L) nats.

    Raises ValueError when the last axis is not the source's S states.
    """
    check_tokens(logits, x_1, objective.source.num_states)
    return objective(answer_from_logits(logits, objective.query(x_1, x_t, t)), x_1, x_t, t)


def cross_entropy(logits: jax.Array, x_1: jax.Array) -> jax.Array:
    """-log post(x_1), (B, L) nats, from posterior logits (B, L, S)."""
    any_path = MixtureDiscreteProbPath(CondOTScheduler())
    return loss_from_logits(CrossEntropy(any_path, UniformSource(logits.shape[-1])), logits, x_1, x_1, 1.0)


def generalized_kl(
    logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike, path: MixtureDiscreteProbPath
) -> jax.Array:
    """lambda [1 - post(z) - 1[z != x_1] (1 + log post(x_1))], (B, L) nats, from posterior logits (B, L, S)."""
    objective = GeneralizedKL(path, UniformSource(logits.shape[-1]))
    return loss_from_logits(objective, logits, x_1, x_t, t)


def time_reversal_bound(
    logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike, path: MixtureDiscreteProbPath, source: Source
) -> jax.Array:
    """The time-reversal bound's integrand, (B, L) nats, from LEAVE-ONE-OUT logits (B, L, S) (`TimeReversal`)."""
    return loss_from_logits(TimeReversal(path, source, "leave_one_out"), logits, x_1, x_t, t)


def masked_elbo(
    logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike, path: MixtureDiscreteProbPath, source: Source
) -> jax.Array:
    """lambda 1[z = m] (-log post(x_1)), (B, L) nats; the mask's own logit (B, L, S = V+1) is left out."""
    return loss_from_logits(MaskedELBO(path, source, suppress_mask=True), logits, x_1, x_t, t)


def to_posterior(
    logits: jax.Array, x_t: jax.Array, t: TimeLike, path: MixtureDiscreteProbPath, source: Source
) -> jax.Array:
    """Posterior logits from leave-one-out ones: logits + 1[v = z] log1p(kappa / (sigma p(z))), (B, L, S).

    Mask source: at z = m the logits without the mask's own, elsewhere the carry-over delta_z. At t = 1, where the
    evidence is infinite, delta_z up to exp(-60). Raises ValueError when the last axis is not S.
    """
    check_tokens(logits, x_t, source.num_states)
    logits = floating(logits)
    states = jnp.arange(source.num_states, dtype=x_t.dtype).reshape((1,) * x_t.ndim + (-1,))
    here = states == x_t[..., None]
    if source.mask_id is not None:
        absent = states == source.mask_id
        carried = (x_t != source.mask_id)[..., None]
        return jnp.where(carried, jnp.where(here, 0.0, -jnp.inf), jnp.where(absent, -jnp.inf, logits))
    out = path.scheduler(expand(as_time(t), x_t.ndim))
    e = evidence(out.alpha_t, out.sigma_t, source.probs(x_t, out.alpha_t.dtype))
    return logits + jnp.where(here, jnp.log1p(e.rho).astype(logits.dtype)[..., None], 0.0)
