"""The losses of the mixture path (mathematics.md D.2, D.3). `OBJECTIVES` has their names.

Notation: z = x_t at a position, post is the posterior p(x_1 | x_t), xhat the leave-one-out law, m the mask,
lambda = d kappa / sigma. The network's logits describe post or xhat (`parametrization`). With the mask source and
leave-one-out logits an unmasked position is carried over: its posterior is delta_z and its loss is 0. A bound, averaged
over t ~ U[0, 1] and summed over positions, is in nats per sequence. At t = 1 a loss has its limit, if that is finite.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dfm_jax.flow.head import HeadAnswer, HeadQuery, VocabReduction
from dfm_jax.flow.losses.evidence import (
    DENOMINATOR_FLOOR,
    SIGMA_FLOOR,
    cross_entropy_of_kept,
    evidence,
    itakura_saito,
    log_evidence,
    log_mixture,
    replaced,
)
from dfm_jax.flow.losses.objective import Objective, times_rate
from dfm_jax.flow.sources import MaskSource, Source
from dfm_jax.flow.time import TimeLike, as_time, expand

KAPPA_FLOOR = 1e-20


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Objective):
    """-log post(x_1). Its minimiser is the posterior. It is no bound.

    corrupted_only: the loss is 0 where x_t = x_1.
    """

    corrupted_only: bool = False

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        both = self.leave_one_out and not self.prediction.carries_over
        return self._gather(x_1, x_t) if both else self._gather(x_1)

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        log_1 = answer.at_ids[..., 0]
        changed = x_t != x_1
        if not self.leave_one_out:
            loss = -log_1
        elif self.prediction.carries_over:
            return jnp.where(x_t == self.source.mask_id, -log_1, 0.0)
        else:
            kappa, sigma, *_ = self._schedule(t, log_1)
            log_z = answer.at_ids[..., 1]
            e = evidence(kappa, sigma, self.source.probs(x_t, log_1.dtype))
            loss = jnp.where(changed, log_evidence(e, log_z) - log_1, cross_entropy_of_kept(e, log_z))
        return jnp.where(changed, loss, 0.0) if self.corrupted_only else loss


@dataclasses.dataclass(frozen=True)
class MaskedELBO(Objective):
    """lambda 1[z = m] (-log post(x_1)): the bound of MD4 and MDLM, for the mask source only.

    It is the same for both parametrisations. Raises ValueError for another source.
    """

    bounds: ClassVar[str | None] = "one_way"
    charges_masks_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_mask("masked_elbo", self.source)

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        return self._gather(x_1)

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        log_1 = answer.at_ids[..., 0]
        masked = x_t == self.source.mask_id
        return times_rate(self._schedule(t, log_1)[3], jnp.where(masked, -log_1, 0.0))


@dataclasses.dataclass(frozen=True)
class MaskedCount(Objective):
    """(L / n) 1[z = m] (-log post(x_1)), with n the number of masked tokens in the sequence. It has no time.

    If x_t comes from `mask_uniform_subset` (n ~ U{1..L}), the sum over positions has the mean of the masked ELBO and a
    smaller variance (mathematics.md D.5). For the mask source only: raises ValueError for another.
    """

    bounds: ClassVar[str | None] = "one_way"
    charges_masks_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_mask("masked_count", self.source)

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        return self._gather(x_1)

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        log_1 = answer.at_ids[..., 0]
        masked = x_t == self.source.mask_id
        count = jnp.maximum(masked.sum(axis=-1, keepdims=True), 1).astype(log_1.dtype)
        return jnp.where(masked, -log_1, 0.0) * (x_t.shape[-1] / count)


@dataclasses.dataclass(frozen=True)
class GeneralizedKL(Objective):
    """lambda [1 - post(z) - 1[z != x_1] (1 + log post(x_1))]: the bound of the one-way velocity.

    From leave-one-out logits, with xz = xhat(z), it takes two log-probabilities:
    lambda [(1-xz)/(1+rho xz) - 1[z != x_1] (1 + log xhat(x_1) - log1p(rho xz))]. The first term is
    d kappa p(z) (1-xz) / (sigma p(z) + kappa xz), which is finite at t = 1. From posterior logits the loss is +inf at
    t = 1 unless post(z) = 1. The bound is tight for the mask source only (mathematics.md D.4).
    """

    bounds: ClassVar[str | None] = "one_way"

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        carried = self.prediction.carries_over
        return self._gather(x_1) if carried else self._gather(x_1, x_t)

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        if self.prediction.carries_over:
            return MaskedELBO(self.path, self.source)(answer, x_1, x_t, t)
        log_1, log_z = answer.at_ids[..., 0], answer.at_ids[..., 1]
        kappa, sigma, d_kappa, rate = self._schedule(t, log_1)
        changed = x_t != x_1
        if not self.leave_one_out:
            return times_rate(rate, jnp.where(changed, -jnp.exp(log_z) - log_1, -jnp.expm1(log_z)))
        p = self.source.probs(x_t, log_1.dtype)
        e = evidence(kappa, sigma, p)
        # Where z != x_1 the 1 of 1 - post(z) cancels the 1 of 1 + log post(x_1). Here it is left out of both.
        post_z = jnp.exp(log_z - log_mixture(e, log_z))
        arrived = jnp.where(changed, log_evidence(e, log_z) - log_1 - post_z, 0.0)
        kept = times_rate(d_kappa, p * replaced(e, log_z))
        return jnp.where(changed, 0.0, kept) + times_rate(rate, arrived)


@dataclasses.dataclass(frozen=True)
class TimeReversal(Objective):
    """(n_t(z) / C(z|x_1)) [KL(C(.|x_1) || C(.|xhat)) + D_IS(C(z|x_1), C(z|xhat))], n = (d kappa / kappa) p.

    The bound of the time reversal of the noising chain (UDLM, GIDD, SEDD-uniform). It is tight for any source. It needs
    xhat, so posterior logits are shifted by -log1p(rho_z) at x_t, and the loss is then not finite as t -> 1. The
    divergence takes one log1p reduction over the vocabulary (mathematics.md D.3 d). For the mask source the bound is
    the masked ELBO.
    """

    bounds: ClassVar[str | None] = "time_reversal"

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        if self.masked:
            return self._gather(x_1)
        kappa, sigma = self._kappa_sigma(t, x_t)
        scale = kappa / jnp.maximum(sigma, SIGMA_FLOOR)
        table = self.source.table(kappa.dtype)
        if table is None:
            reduction = VocabReduction("log1p", scale=scale * self.source.vocab_size)
        else:
            inner = jnp.where(table > 0, 1.0 / jnp.where(table > 0, table, 1.0), 0.0)
            reduction = VocabReduction("log1p", weights=table, scale=scale, inner=inner)
        query = self._gather(x_1, x_t)._replace(reduction=reduction)
        if self.leave_one_out:
            return query
        e = evidence(kappa, sigma, self.source.probs(x_t, kappa.dtype))
        return query._replace(shift=-jnp.log1p(e.rho), shift_ids=x_t)

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        if self.masked:
            return MaskedELBO(self.path, self.source)(answer, x_1, x_t, t)
        reduced = self._reduced(answer)
        log_1, log_z, dtype = answer.at_ids[..., 0], answer.at_ids[..., 1], answer.at_ids.dtype
        d_kappa = self._schedule(t, log_1)[2]
        kappa, sigma = (x.astype(dtype) for x in self._kappa_sigma(t, x_t))
        changed = x_t != x_1
        p_1, p_z = self.source.probs(x_1, dtype), self.source.probs(x_t, dtype)
        at_1, at_z = evidence(kappa, sigma, p_1), evidence(kappa, sigma, p_z)
        spread = reduced / self.source.vocab_size if self.source.table(dtype) is None else reduced
        divergence = at_1.noise * jnp.log1p(at_1.rho) - sigma * spread - kappa * log_mixture(at_1, log_1)
        known = kappa / jnp.maximum(at_z.noise + kappa * jnp.exp(log_z), DENOMINATOR_FLOOR)
        delta = known * jnp.where(changed, -jnp.exp(log_z), -jnp.expm1(log_z))
        log_ratio = jnp.where(changed, -log_evidence(at_z, log_z), -log_mixture(at_z, log_z))
        at_changed = 1.0 / jnp.maximum(sigma, SIGMA_FLOOR)
        weight = jnp.where(changed, at_changed, p_z / (kappa + at_z.noise)) / kappa
        per_kappa = weight * (divergence + itakura_saito(delta, log_ratio))
        return times_rate(d_kappa, jnp.where(kappa > KAPPA_FLOOR, per_kappa, 0.0))

    def _kappa_sigma(self, t: TimeLike, like: jax.Array) -> tuple[jax.Array, jax.Array]:
        """kappa and sigma for positions of `like`; kappa stays above 0, where the loss per kappa has its limit 0."""
        out = self.path.scheduler(expand(as_time(t), like.shape))
        kappa = jnp.maximum(out.alpha_t, KAPPA_FLOOR)
        return jnp.broadcast_to(kappa, like.shape), jnp.broadcast_to(out.sigma_t, like.shape)


OBJECTIVES = {
    "cross_entropy": CrossEntropy,
    "cross_entropy_corrupted": CrossEntropy,
    "generalized_kl": GeneralizedKL,
    "time_reversal": TimeReversal,
    "masked_elbo": MaskedELBO,
    "masked_count": MaskedCount,
}


def mixture_objective(name: str, path: Any, source: Source, parametrization: str, suppress_mask: bool) -> Objective:
    """The loss that OBJECTIVES calls `name`, on `path` from `source`. Raises ValueError for an unknown name."""
    if name not in OBJECTIVES:
        raise ValueError(f"loss = {name!r}: expected {', '.join(OBJECTIVES)}")
    if name == "cross_entropy_corrupted":
        return CrossEntropy(path, source, parametrization, suppress_mask, corrupted_only=True)
    return OBJECTIVES[name](path, source, parametrization, suppress_mask)


def _require_mask(name: str, source: Source) -> None:
    if not isinstance(source, MaskSource):
        raise ValueError(f"source = {type(source).__name__}: expected MaskSource with loss={name!r}")
