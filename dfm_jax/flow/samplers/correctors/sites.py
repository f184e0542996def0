"""Which positions a round of a corrector changes."""

import dataclasses

import jax
import jax.numpy as jnp

from dfm_jax.flow.samplers.unmasking.orders import ranks


@dataclasses.dataclass(frozen=True)
class Sites:
    """sites = n positions, chosen uniformly; or each with probability `rate`; or the `informed` = n that fit worst.

    noise: Gumbel noise on the misfit -log p of informed sites, times this. With 1, n positions are drawn one after the
    other in proportion to 1 / p. Raises ValueError unless exactly one of sites, rate and informed is given, in range.
    """

    sites: int | None = None
    rate: float | None = None
    informed: int | None = None
    noise: float | None = None

    def __post_init__(self):
        given = [name for name in ("sites", "rate", "informed") if getattr(self, name) is not None]
        if len(given) != 1:
            written = ", ".join(f"{name} = {getattr(self, name)}" for name in given)
            raise ValueError(f"{written or 'sites = None'}: expected one of sites, rate, informed")
        for name in ("sites", "informed"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} = {value}: expected an integer of 1 or more")
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise ValueError(f"rate = {self.rate}: expected a number in [0, 1]")
        if self.noise is not None and (self.informed is None or not self.noise >= 0):
            raise ValueError(f"noise = {self.noise}: expected a number of 0 or more, with informed")

    def choose(self, u: jax.Array, candidates: jax.Array, log_fit: jax.Array | None = None) -> jax.Array:
        """(B, L) bool, among `candidates` (B, L); all of them if there are fewer than n.

        u: (B, L) uniforms. log_fit: (B, L) nats, how well the token fits, for informed sites.
        """
        if self.rate is not None:
            return candidates & (u < self.rate)
        if self.sites is not None:
            score, most = u, self.sites
        else:
            assert log_fit is not None and self.informed is not None
            noise = 1.0 if self.noise is None else self.noise
            score, most = -log_fit, self.informed
            if noise:
                score = score + noise * -jnp.log(-jnp.log(u))
        return candidates & (ranks(score, candidates, jnp.zeros(u.shape, jnp.int32), 0.0) < most)
