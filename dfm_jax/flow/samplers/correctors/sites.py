"""Which positions a round of a corrector changes."""

import dataclasses

import jax
import jax.numpy as jnp

from dfm_jax.flow.samplers.grid import check_count
from dfm_jax.flow.samplers.unmasking.orders import MOST_NOISE, ranks

WHICH = ("sites", "rate", "informed")


@dataclasses.dataclass(frozen=True)
class Sites:
    """sites = n positions, chosen uniformly; or each with probability `rate`; or the `informed` = n that fit worst.
    One position, if nothing is said.

    noise: Gumbel noise on the misfit -log p of informed sites, times this. With 1, n positions are drawn one after the
    other in proportion to 1 / p. Raises ValueError for more than one of sites, rate and informed, and out of range.
    """

    sites: int | None = None
    rate: float | None = None
    informed: int | None = None
    noise: float | None = None

    def __post_init__(self):
        given = [f"{name} = {value}" for name in WHICH if (value := getattr(self, name)) is not None]
        if len(given) > 1:
            raise ValueError(f"{', '.join(given)}: expected one of {', '.join(WHICH)}")
        if not given:
            object.__setattr__(self, "sites", 1)
        for name in ("sites", "informed"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_count(name, value))
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise ValueError(f"rate = {self.rate}: expected a number in [0, 1]")
        if self.noise is not None and (self.informed is None or not 0 <= self.noise < MOST_NOISE):
            raise ValueError(
                f"noise = {self.noise}: expected a number of 0 or more, below {MOST_NOISE:g}, with informed"
            )

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
