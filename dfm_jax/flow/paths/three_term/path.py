"""The three-term path, a mixture of data, uniform noise and mask, and its two bounds (mathematics.md C.4).

    C_t = k1 delta_{x_1} + k2 / V + k3 delta_m,  rho = g kappa sigma: k1 = kappa (1-rho), k2 = rho, k3 = sigma (1-rho)

V is the number of data tokens, the uniform noise is over them, and kappa is the clock of the path. The path takes the
mask source. (With a uniform source the last two terms would be one, and the path a mixture.) Derivatives below are in
kappa.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.flow.head import HeadAnswer, HeadQuery, VocabReduction
from dfm_jax.flow.losses.evidence import (
    DENOMINATOR_FLOOR,
    SIGMA_FLOOR,
    Evidence,
    evidence,
    itakura_saito,
    log_evidence,
    log_mixture,
)
from dfm_jax.flow.losses.objective import Objective, times_rate
from dfm_jax.flow.paths.base import Path, PathSample, clock, find_objective, find_step
from dfm_jax.flow.paths.three_term.steps import STEPS
from dfm_jax.flow.paths.velocity import Velocity
from dfm_jax.flow.random import bernoulli, by_row, split
from dfm_jax.flow.sources import MaskSource, Source
from dfm_jax.flow.time import Time, TimeLike
from dfm_jax.flow.tokens import as_pair

# The one-way bound uses no smaller sigma: its s grows as 1 / sigma^2 and must not overflow in float32.
LAST_SIGMA = 1e-14


class ThreeTermRates(NamedTuple):
    """Jump rates per unit of kappa (C.4).

    The one-way velocity jumps to x_1 at `forward` (a_1) and to a uniform token at `noise` (a_2). `mask`, `off` and `on`
    are n(z) / C(z | x_1), the noising rate into z over the law at z: at the mask, at a token that is not x_1, and at
    x_1. `mask` is given without its factor 1 / kappa.
    """

    forward: jax.Array
    noise: jax.Array
    mask: jax.Array
    off: jax.Array
    on: jax.Array


@dataclasses.dataclass(frozen=True)
class ThreeTermProbPath(Path):
    """kappa (1 - rho) delta_{x_1} + rho / V + sigma (1 - rho) delta_{x_0}, rho = `noise` kappa sigma.

    The one-way bound (`generalized_kl`) has a gap even for the exact posterior. The time-reversal bound is tight.
    Raises ValueError unless 0 < noise <= 1.
    """

    vocab_size: int
    noise: float = 0.5

    noises_alike: ClassVar[bool] = True
    bound_names: ClassVar[tuple[str, ...]] = ("generalized_kl", "time_reversal")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise <= 1:
            raise ValueError(f"noise = {self.noise!r}: expected values in (0, 1]")

    def check(self, source: Source, parametrization: str) -> None:
        if source.mask_id != self.vocab_size:
            raise ValueError(f"source = {type(source).__name__}: expected MaskSource({self.vocab_size})")

    def coefficients(self, kappa: Any, sigma: Any) -> tuple[Any, Any, Any]:
        """k1, k2, k3 at kappa and sigma of the clock, jax or numpy arrays of their shape."""
        rho = self.noise * kappa * sigma
        return kappa * (1 - rho), rho, sigma * (1 - rho)

    def rates(self, kappa: jax.Array, sigma: jax.Array) -> ThreeTermRates:
        """The `ThreeTermRates` at kappa and sigma, of their shape; finite for sigma > 0."""
        g = self.noise
        left = 1 - g * kappa * sigma
        fade = (1 - g * sigma**2) / left
        floor = jnp.maximum(sigma, SIGMA_FLOOR)
        return ThreeTermRates(
            forward=left / floor,
            noise=g * sigma * (1 - g * kappa**2) / left,
            mask=1 / floor,
            off=fade / floor,
            on=g * fade / (self.vocab_size * left + g * sigma),
        )

    def evidence(self, kappa: jax.Array, sigma: jax.Array) -> Evidence:
        """The evidence of a data token. k1 and k2 / V are divided by kappa, which keeps all of it finite at t = 0."""
        return evidence(
            1 - self.noise * kappa * sigma, self.noise * sigma, jnp.asarray(1 / self.vocab_size, kappa.dtype)
        )

    def own_source(self) -> Source:
        return MaskSource(self.vocab_size)

    def own_velocity(self) -> Velocity:
        return ThreeTermForwardVelocity()

    def loo_logit_shift(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
        kappa, sigma, _ = clock(self, t, x_t.shape)
        known = jnp.log1p(self.evidence(kappa, sigma).rho)
        return jnp.where(x_t == source.mask_id, 0.0, known)

    def sample(self, key: jax.Array, x_0: jax.Array, x_1: jax.Array, t: TimeLike) -> PathSample:
        """Draws x_t: x_1, a uniform token or x_0, with probabilities k1, k2, k3. Shapes as in `Path.sample`."""
        x_0, x_1 = as_pair(x_0, x_1)
        kappa, sigma, _ = clock(self, t, x_1.shape)
        rho = self.noise * kappa * sigma
        noise_key, keep_key, token_key = split(key, 3)
        kept = jnp.where(bernoulli(keep_key, kappa, sigma, x_1.shape), x_1, x_0)
        tokens = by_row(lambda k, s: jax.random.randint(k, s, 0, self.vocab_size, jnp.int32), token_key, x_1.shape)
        return PathSample(x_0, x_1, jnp.where(bernoulli(noise_key, rho, 1 - rho, x_1.shape), tokens, kept), t)

    def get_objective(self, name: str, source: Source, parametrization: str, suppress_mask: bool) -> Objective:
        losses = {"generalized_kl": ThreeTermForwardKL, "time_reversal": ThreeTermTimeReversal}
        return find_objective(self, losses, name, source, parametrization, suppress_mask)

    def get_step(self, name: str) -> Any:
        return find_step(self, STEPS, name)


@dataclasses.dataclass(frozen=True)
class ThreeTermForwardKL(Objective):
    """The bound of the one-way velocity, rates a_1 delta_{x_1} + a_2 / V (mathematics.md D.1), by one log1p reduction.

    Per position, s = V a_1 / a_2, z = x_t and sums over data tokens: a_1 times
        1 - post(z) - 1[z != x_1] [1 - (1 + 1/s) log((1 + s) / (1 + s post(x_1)))]
        - (1/s) sum_{x != z, x_1} log1p(s post(x)).
    At z = x_1 the rounding of log post(z) adds an error of 6e-8 / sigma. Unlike the time reversal, this bound has no
    closed form for leave-one-out logits.
    """

    path: ThreeTermProbPath

    bounds: ClassVar[str | None] = "one_way"

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        kappa, sigma, _ = clock(self.path, t, x_t.shape)
        scale = jnp.broadcast_to(self._evidence(kappa, sigma).rho, x_t.shape)
        return self.prediction.shifted(self._gather(x_1, x_t), x_t, t)._replace(
            reduction=_over_data(self.source, scale)
        )

    def _evidence(self, kappa: jax.Array, sigma: jax.Array) -> Evidence:
        """The evidence of a jump to x_1 against a jump to one given uniform token; its rho is s."""
        rates = self.path.rates(kappa, jnp.maximum(sigma, LAST_SIGMA))
        return evidence(rates.forward, rates.noise, jnp.asarray(1 / self.path.vocab_size, kappa.dtype))

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        log_1, log_z, reduced = answer.at_ids[..., 0], answer.at_ids[..., 1], self._reduced(answer)
        kappa, sigma, d_kappa = (x.astype(log_1.dtype) for x in clock(self.path, t, x_t.shape))
        e = self._evidence(kappa, sigma)
        changed, masked = x_t != x_1, x_t == self.source.mask_id
        log_z = jnp.where(masked, -jnp.inf, log_z)  # data is never the mask
        left = jnp.where(changed, -jnp.exp(log_z), -jnp.expm1(log_z))
        arrived = -(1 + 1 / e.rho) * log_mixture(e, log_1)
        elsewhere = reduced - log_evidence(e, log_z) - jnp.where(changed, log_evidence(e, log_1), 0.0)
        loss = left + jnp.where(changed, arrived, 0.0) - elsewhere / e.rho
        return times_rate(d_kappa, self.path.rates(kappa, jnp.maximum(sigma, LAST_SIGMA)).forward * loss)


@dataclasses.dataclass(frozen=True)
class ThreeTermTimeReversal(Objective):
    """(n(z) / C(z|x_1)) [KL(C(.|x_1) || C(.|xhat)) + D_IS(C(z|x_1), C(z|xhat))]: the tight bound (GIDD).

    It needs xhat. Posterior logits are shifted by -log1p(rho_z) at x_t, and the loss is then not finite as t -> 1.
    """

    path: ThreeTermProbPath

    bounds: ClassVar[str | None] = "time_reversal"

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        kappa, sigma, _ = clock(self.path, t, x_t.shape)
        scale = jnp.broadcast_to(self.path.evidence(kappa, sigma).rho, x_t.shape)
        query = self._gather(x_1, x_t)._replace(reduction=_over_data(self.source, scale))
        if self.leave_one_out:
            return query
        return query._replace(shift=-self.path.loo_logit_shift(x_t, t, self.source), shift_ids=x_t)

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        log_1, log_z, reduced = answer.at_ids[..., 0], answer.at_ids[..., 1], self._reduced(answer)
        kappa, sigma, d_kappa = (x.astype(log_1.dtype) for x in clock(self.path, t, x_t.shape))
        e, rates = self.path.evidence(kappa, sigma), self.path.rates(kappa, sigma)
        changed, masked = x_t != x_1, x_t == self.source.mask_id
        log_z = jnp.where(masked, 0.0, log_z)  # not used there
        # Divided by kappa, like the evidence. The mask adds nothing to the divergence.
        divergence = e.noise * (jnp.log1p(e.rho) - reduced) - e.kappa * log_mixture(e, log_1)
        xhat = jnp.exp(log_z)
        known = e.kappa / jnp.maximum(e.noise + e.kappa * xhat, DENOMINATOR_FLOOR)
        delta = jnp.where(changed, -xhat, -jnp.expm1(log_z)) * known
        log_ratio = jnp.where(changed, -log_evidence(e, log_z), -log_mixture(e, log_z))
        at_token = jnp.where(changed, rates.off, rates.on) * (kappa * divergence + itakura_saito(delta, log_ratio))
        return times_rate(d_kappa, jnp.where(masked, rates.mask * divergence, at_token))


@dataclasses.dataclass(frozen=True)
class ThreeTermForwardVelocity(Velocity):
    """a_1 delta_{x_1}(x) + a_2 / V: the one-way velocity, from the mask and from every token."""

    def rates(self, post: jax.Array, x_t: jax.Array, time: Time, path: Any, source: Source) -> jax.Array:
        out = path.scheduler(time)
        rates = path.rates(out.alpha_t.astype(post.dtype), out.sigma_t.astype(post.dtype))
        return out.d_alpha_t.astype(post.dtype) * (rates.forward * post + rates.noise * _uniform(source, post))


@dataclasses.dataclass(frozen=True)
class ThreeTermReversalVelocity(Velocity):
    """(n(z) / C(z|x_1)) C(x|x_1): the reversal of the chain that turns data into noise and mask; +inf at t = 0."""

    def rates(self, post: jax.Array, x_t: jax.Array, time: Time, path: Any, source: Source) -> jax.Array:
        out = path.scheduler(time)
        kappa, sigma = out.alpha_t.astype(post.dtype), out.sigma_t.astype(post.dtype)
        k1, k2, k3 = path.coefficients(kappa, sigma)
        rates = path.rates(kappa, sigma)
        masked = (x_t == source.mask_id)[..., None]
        post_z = jnp.where(masked, 0.0, jnp.take_along_axis(post, x_t[..., None], axis=-1))
        off, on = jnp.where(masked, rates.mask / kappa, rates.off), jnp.where(masked, 0.0, rates.on)
        law = k2 * _uniform(source, post) + k3 * _mask(source, post)
        # Off x_1 = z the rate is `off` times C(x|x_1); where x_1 = z it is `on` times the law without x_1.
        return out.d_alpha_t.astype(post.dtype) * (off * (k1 * post + (1 - post_z) * law) + on * post_z * law)


def _over_data(source: Source, scale: jax.Array) -> VocabReduction:
    """The reduction that sums log1p(scale p_v) over data tokens."""
    weights = jnp.where(jnp.arange(source.num_states) == source.mask_id, 0.0, 1.0).astype(scale.dtype)
    return VocabReduction("log1p", weights=weights, scale=scale)


def _uniform(source: Source, post: jax.Array) -> jax.Array:
    """1 / V on data tokens, over the last axis, with as many axes as `post`."""
    ids = jnp.arange(source.num_states).reshape((1,) * (post.ndim - 1) + (-1,))
    return jnp.where(ids == source.mask_id, 0.0, 1 / source.vocab_size).astype(post.dtype)


def _mask(source: Source, post: jax.Array) -> jax.Array:
    ids = jnp.arange(source.num_states).reshape((1,) * (post.ndim - 1) + (-1,))
    return (ids == source.mask_id).astype(post.dtype)
