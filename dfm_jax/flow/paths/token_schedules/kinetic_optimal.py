"""The kinetic-optimal path, where every token follows the geodesic of sqrt(p), for any source law (mathematics.md C.3).

sigma(v) = sin^2(sigma W_v) / sin^2 W_v,  W_v = acos sqrt p(v)
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.head import HeadAnswer, HeadQuery, VocabReduction, one_minus_y_cot_y
from dfm_jax.flow.losses.evidence import DENOMINATOR_FLOOR, SIGMA_FLOOR, Evidence, evidence, log_evidence, log_mixture
from dfm_jax.flow.losses.objective import Objective, times_rate
from dfm_jax.flow.paths.base import clock, find_objective
from dfm_jax.flow.paths.token_schedules.base import TokenSchedulePath
from dfm_jax.flow.samplers.step import Knots, Row
from dfm_jax.flow.sources import CategoricalSource, Source
from dfm_jax.flow.time import TimeLike


@dataclasses.dataclass(frozen=True, eq=False)
class KineticOptimalProbPath(TokenSchedulePath):
    """sigma(v) = sin^2(sigma W_v) / sin^2 W_v with W_v = acos sqrt p(v): the geodesic of sqrt(p), for any source law.

    On this path `leave_one_out` logits describe the law of x_1 given the other tokens and given that x_t is noise. The
    posterior logit at z is larger by log1p(kappa(z) / (sigma(z) p(z))). That law is xhat up to factors sigma(v).
    Raises ValueError for a source law with all its mass on one token.
    """

    source: CategoricalSource

    leaves: ClassVar[tuple[str, ...]] = ("source", "_angle", "_short", "_square")
    bound_names: ClassVar[tuple[str, ...]] = ("generalized_kl",)

    def __post_init__(self) -> None:
        super().__post_init__()
        law = self.source.law
        if isinstance(law, jax.ShapeDtypeStruct):
            for name in ("_angle", "_short", "_square"):
                object.__setattr__(self, name, law)
            return
        if not law.max() < 1:
            raise ValueError(f"probs with maximum {law.max()}: expected a source law of at least two tokens")
        angle = np.arccos(np.sqrt(law))
        # pi - 2W and sin^2 W come from p itself. sin((1 + r) W) = sin(pi - 2W + tW) then keeps its digits for small t.
        tables = {"_angle": angle, "_short": 2 * np.arcsin(np.sqrt(law)), "_square": 1 - law}
        for name, value in tables.items():
            object.__setattr__(self, name, value)

    def check(self, source: Source, parametrization: str) -> None:
        if not isinstance(source, CategoricalSource) or not source.may_equal(self.source):
            raise ValueError(f"source = {type(source).__name__}: expected the path's own CategoricalSource")

    def angles(self, dtype: Any) -> jax.Array:
        """W (V,), radians, in `dtype`."""
        return jnp.asarray(self._angle, dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def _at(self, name: str, ids: jax.Array, like: jax.Array) -> jax.Array:
        return jnp.asarray(getattr(self, name), like.dtype)[ids]

    def schedule(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        w, short, square = (self._at(name, ids, kappa) for name in ("_angle", "_short", "_square"))
        return jnp.sin(w * kappa) * jnp.sin(short + w * kappa) / square, jnp.sin(w * sigma) ** 2 / square

    def rate(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> jax.Array:
        return 2 / sigma * (1 - one_minus_y_cot_y(sigma * self._at("_angle", ids, sigma)))

    def evidence(self, x_t: jax.Array, kappa: jax.Array, sigma: jax.Array) -> Evidence:
        """The evidence of the tokens x_t, each on its own schedule, at the clock's kappa and sigma."""
        return evidence(*self.schedule(x_t, kappa, sigma), self.source.probs(x_t, kappa.dtype))

    def own_source(self) -> Source:
        return self.source

    def loo_logit_shift(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
        kappa, sigma, _ = clock(self, t, x_t.shape)
        return jnp.log1p(self.evidence(x_t, kappa, sigma).rho)

    def step_scalars(self, knots: Knots) -> dict[str, np.ndarray]:
        kappa, sigma = knots.kappa, knots.sigma
        return {
            "sigma": sigma[:-1],
            "step": sigma[:-1] - sigma[1:],
            "late": sigma[:-1] + sigma[1:],
            "early": kappa[:-1] + kappa[1:],
            "last": knots.last,
        }

    def jump(self, ids: jax.Array, row: Row) -> jax.Array:
        # sin^2 a - sin^2 b = sin(a - b) sin(a + b). The last factor is sin(pi - a - b) where that angle is smaller.
        w, short = (self._at(name, ids, row["sigma"]) for name in ("_angle", "_short"))
        total = jnp.where(row["late"] > 1, jnp.sin(short + row["early"] * w), jnp.sin(row["late"] * w))
        jump = jnp.sin(row["step"] * w) * total / jnp.sin(row["sigma"] * w) ** 2
        return jnp.where(row["last"] > 0, 1.0, jnp.clip(jump, 0.0, 1.0))

    def most(self, row: Row) -> jax.Array:
        # The jump probability falls with W. The bound is a little larger, to cover rounding.
        likeliest = jnp.argmax(jnp.asarray(self.source.law, jnp.float32)).astype(jnp.int32)
        return jnp.minimum(self.jump(likeliest, row) * (1 + 1e-5), 1.0)

    def get_objective(self, name: str, source: Source, parametrization: str, suppress_mask: bool) -> Objective:
        return find_objective(self, {"generalized_kl": KineticOptimalKL}, name, source, parametrization, suppress_mask)


@dataclasses.dataclass(frozen=True)
class KineticOptimalKL(Objective):
    """sum_{x != z} lambda(x) post(x) - 1[z != x_1] lambda(x_1) (1 + log post(x_1)) (mathematics.md D.2).

    lambda(x) = (2 / sigma)(1 - e_x), with e_x = 1 - y cot y and y = sigma W_x. So the sum over x takes one reduction,
    sum_x e_x p_x, and 1 - post(z). For leave-one-out logits 1 - post(z) has a closed form, which keeps the loss finite
    at t = 1.
    """

    path: KineticOptimalProbPath

    bounds: ClassVar[str | None] = "one_way"

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        _, sigma, _ = clock(self.path, t, x_t.shape)
        scale = jnp.broadcast_to(sigma, x_t.shape)
        reduction = VocabReduction("cotangent", scale=scale, inner=self.path.angles(sigma.dtype))
        return self._gather(x_1, x_t)._replace(reduction=reduction)

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        log_1, log_z, reduced = answer.at_ids[..., 0], answer.at_ids[..., 1], self._reduced(answer)
        kappa, sigma, d_kappa = (x.astype(log_1.dtype) for x in clock(self.path, t, x_t.shape))
        angles = self.path.angles(log_1.dtype)
        at_1, at_z = (one_minus_y_cot_y(sigma * angles[x]) for x in (x_1, x_t))
        changed = x_t != x_1
        slower = reduced - at_z * jnp.exp(log_z)
        rate = 2 * d_kappa / jnp.maximum(sigma, SIGMA_FLOOR)
        if not self.leave_one_out:
            kept = -jnp.expm1(log_z) - slower
            moved = -jnp.exp(log_z) - slower + at_1 - (1 - at_1) * log_1
            return times_rate(rate, jnp.where(changed, moved, kept))
        e = self.path.evidence(x_t, kappa, sigma)
        xhat = jnp.exp(log_z)
        gain = log_evidence(e, log_z)
        share = 1 / (1 + e.rho * xhat)
        post_z = jnp.exp(log_z - log_mixture(e, log_z))
        moved = -post_z - share * slower + at_1 - (1 - at_1) * (log_1 - gain)
        # noise (1 - xz - slower) / (noise + kappa xz). noise / sigma is taken out, as noise goes to 0 with sigma.
        noise_rate = 2 * e.noise / jnp.maximum(sigma, SIGMA_FLOOR)
        kept = noise_rate * (-jnp.expm1(log_z) - slower) / jnp.maximum(e.noise + e.kappa * xhat, DENOMINATOR_FLOOR)
        return jnp.where(changed, times_rate(rate, jnp.where(changed, moved, 0.0)), times_rate(d_kappa, kept))
