"""The conditional mixture path between source and data (mathematics.md C.1)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dfm_jax.flow.losses.evidence import evidence
from dfm_jax.flow.losses.mixture import mixture_objective
from dfm_jax.flow.losses.objective import Objective, times_rate
from dfm_jax.flow.paths.base import Path, PathSample
from dfm_jax.flow.paths.mixture.velocities import ForwardVelocity
from dfm_jax.flow.paths.velocity import Velocity
from dfm_jax.flow.random import bernoulli
from dfm_jax.flow.samplers.names import get_step
from dfm_jax.flow.sources import Source
from dfm_jax.flow.time import TimeLike, as_time, expand, floating
from dfm_jax.flow.tokens import as_pair, check_tokens, one_hot_like


@dataclasses.dataclass(frozen=True)
class MixtureDiscreteProbPath(Path):
    """C_t(x | x_0, x_1) = kappa_t delta_{x_1}(x) + sigma_t delta_{x_0}(x), independently at each position."""

    carries_over: ClassVar[bool] = True
    jumps_alike: ClassVar[bool] = True
    noises_alike: ClassVar[bool] = True
    counts_masks: ClassVar[bool] = True

    def check(self, source: Source, parametrization: str) -> None:
        """Accepts every source and parametrisation."""

    def sample(self, key: jax.Array, x_0: jax.Array, x_1: jax.Array, t: TimeLike) -> PathSample:
        """Draws x_t: each token is x_1 with probability kappa_t, else x_0.

        x_0, x_1: (B, L) int. t: (B,), or more leading axes of the tokens. key: one key, or (B,) keys, one per row.
        At t = 0 x_t is x_0, and at t = 1 it is x_1. Raises ValueError for shapes that differ and tokens that are not
        integers.
        """
        x_0, x_1 = as_pair(x_0, x_1)
        kappa, sigma, *_ = self.scheduler(expand(as_time(t), x_1.shape))
        keep = bernoulli(key, kappa, sigma, x_1.shape)
        return PathSample(x_0, x_1, jnp.where(keep, x_1, x_0), t)

    def loo_logit_shift(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
        """log1p(kappa / (sigma p(x_t))), nats, of x_t's shape (mathematics.md D.3)."""
        out = self.scheduler(expand(as_time(t), x_t.shape))
        return jnp.log1p(evidence(out.alpha_t, out.sigma_t, source.probs(x_t, out.alpha_t.dtype)).rho)

    def bounds_for(self, source: Source) -> tuple[str, ...]:
        return ("generalized_kl", "time_reversal" if source.mask_id is None else "masked_elbo")

    def own_source(self) -> None:
        """None: any source will do."""
        return None

    def own_velocity(self) -> Velocity:
        return ForwardVelocity()

    def posterior_to_velocity(self, logits: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        """u_t(x, z) = lambda_t (post(x) - delta_z(x)), z = x_t, of shape (B, L, S), per unit of t; rows sum to 0.

        logits: (B, L, S), of the posterior. At t = 1 the result is infinite unless the posterior is delta_z.
        """
        check_tokens(logits, x_t)
        rate = expand(as_time(t), logits.shape)
        post = jax.nn.softmax(floating(logits), axis=-1)
        return times_rate(self.scheduler.jump_rate(rate), post - one_hot_like(x_t, post))

    def get_objective(self, name: str, source: Source, parametrization: str, suppress_mask: bool) -> Objective:
        return mixture_objective(name, self, source, parametrization, suppress_mask)

    def get_step(self, name: str) -> Any:
        return get_step(name)
