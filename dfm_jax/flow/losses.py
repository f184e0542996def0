"""The losses as functions of dense logits (B, L, S), for notebooks, tests and small vocabularies.

Each is its objective (`flow.objectives`) answered by `answer_from_logits`; the trainer has the same objective answered
by the fused head. All return (B, L) nats; the caller reduces. t is (B,), an array or a `Time`.
"""

import jax
import jax.numpy as jnp

from dfm_jax.flow.evidence import evidence
from dfm_jax.flow.head import answer_from_logits
from dfm_jax.flow.objectives import CrossEntropy, Objective, get_objective
from dfm_jax.flow.path_base import GeneralPath
from dfm_jax.flow.paths import MixtureDiscreteProbPath, as_pair, at_tokens, check_tokens
from dfm_jax.flow.schedulers_polynomial import CondOTScheduler
from dfm_jax.flow.sources import Source, UniformSource
from dfm_jax.flow.time import TimeLike, as_time, expand, floating

Path = MixtureDiscreteProbPath | GeneralPath


def loss_from_logits(objective: Objective, logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
    """`objective` for dense `logits` (B, L, S) of its parametrization, (B, L) nats.

    Raises ValueError when the last axis is not the source's S states, or x_1 and x_t are not integers (B, L).
    """
    check_tokens(logits, x_1, objective.source.num_states)
    x_t, x_1 = as_pair(x_t, x_1, "x_t")
    return objective(answer_from_logits(logits, objective.query(x_1, x_t, t)), x_1, x_t, t)


def cross_entropy(logits: jax.Array, x_1: jax.Array) -> jax.Array:
    """-log post(x_1), (B, L) nats, from posterior logits (B, L, S)."""
    any_path = MixtureDiscreteProbPath(CondOTScheduler())
    return loss_from_logits(CrossEntropy(any_path, UniformSource(logits.shape[-1])), logits, x_1, x_1, 1.0)


def generalized_kl(logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike, path: Path) -> jax.Array:
    """lambda [1 - post(z) - 1[z != x_1] (1 + log post(x_1))], (B, L) nats, from posterior logits (B, L, S).

    On another path than the mixture, the bound of that path's own velocity. Raises ValueError where it has none.
    """
    source = path.own_source() if isinstance(path, GeneralPath) else UniformSource(logits.shape[-1])
    return loss_from_logits(get_objective("generalized_kl", path=path, source=source), logits, x_1, x_t, t)


def time_reversal_bound(
    logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike, path: Path, source: Source
) -> jax.Array:
    """The time-reversal bound's integrand, (B, L) nats, from LEAVE-ONE-OUT logits (B, L, S) (`TimeReversal`)."""
    objective = get_objective("time_reversal", path=path, source=source, parametrization="leave_one_out")
    return loss_from_logits(objective, logits, x_1, x_t, t)


def masked_elbo(
    logits: jax.Array, x_1: jax.Array, x_t: jax.Array, t: TimeLike, path: Path, source: Source
) -> jax.Array:
    """lambda 1[z = m] (-log post(x_1)), (B, L) nats; the mask's own logit (B, L, S = V+1) is left out."""
    objective = get_objective("masked_elbo", path=path, source=source, suppress_mask=True)
    return loss_from_logits(objective, logits, x_1, x_t, t)


def to_posterior(logits: jax.Array, x_t: jax.Array, t: TimeLike, path: Path, source: Source) -> jax.Array:
    """Posterior logits from leave-one-out ones: logits + 1[v = z] log1p(kappa / (sigma p(z))), (B, L, S).

    Mask source: the mask's own logit is left out, and on a path where nothing but x_1 replaces a mask (the mixture,
    GenMD4) any other token is carried over, delta_z. At t = 1, where the evidence is infinite, delta_z up to exp(-60).
    Raises ValueError when the last axis is not S, or the path does not know leave-one-out logits.
    """
    check_tokens(logits, x_t, source.num_states)
    logits, here = floating(logits), at_tokens(x_t, source.num_states)
    general = isinstance(path, GeneralPath)
    if source.mask_id is not None:
        logits = logits.at[..., source.mask_id].set(-jnp.inf)
        if not general or path.carries_over:
            return jnp.where((x_t != source.mask_id)[..., None], jnp.where(here, 0.0, -jnp.inf), logits)
    if general:
        gain = path.log_evidence(x_t, t, source)
    else:
        out = path.scheduler(expand(as_time(t), x_t.shape))
        gain = jnp.log1p(evidence(out.alpha_t, out.sigma_t, source.probs(x_t, out.alpha_t.dtype)).rho)
    return logits + jnp.where(here, gain.astype(logits.dtype)[..., None], 0.0)
