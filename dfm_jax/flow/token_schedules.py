"""Mixture paths on which every token has its own schedule (mathematics.md C.3): kinetic-optimal, and GenMD4's.

    C_t(x | x_1) = kappa_t(x_1) delta_{x_1}(x) + sigma_t(x_1) p(x)

A token jumps to x_1 at lambda_t(x_1). Both schedules are functions of the path's clock: below, kappa and sigma without
a token are the clock's, and rates are per unit of its kappa.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.evidence import DENOMINATOR_FLOOR, SIGMA_FLOOR, Evidence, evidence, log_evidence, log_mixture
from dfm_jax.flow.head import HeadAnswer, HeadQuery, VocabReduction, one_minus_y_cot_y
from dfm_jax.flow.noise import bernoulli
from dfm_jax.flow.objectives import Objective
from dfm_jax.flow.path_base import GeneralPath, PathObjective, clock, find_objective, find_step
from dfm_jax.flow.paths import PathSample, as_pair, times_rate
from dfm_jax.flow.scheduler_base import log_both
from dfm_jax.flow.sources import CategoricalSource, MaskSource, Source
from dfm_jax.flow.steps import Knots, Row
from dfm_jax.flow.time import Time, TimeLike
from dfm_jax.flow.token_steps import STEPS
from dfm_jax.flow.velocities import Velocity


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSchedulePath(GeneralPath, abc.ABC):
    """x_t is x_1 with probability kappa_t(x_1), else x_0."""

    @abc.abstractmethod
    def schedule(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        """kappa(v), sigma(v) at tokens `ids`, each accurate near its own 0; arguments broadcast."""

    @abc.abstractmethod
    def rate(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> jax.Array:
        """lambda(v) at tokens `ids`, per unit of kappa; +inf at sigma = 0."""

    @abc.abstractmethod
    def step_scalars(self, knots: Knots) -> dict[str, np.ndarray]:
        """What `jump` needs of each step, float64."""

    @abc.abstractmethod
    def jump(self, ids: jax.Array, row: Row) -> jax.Array:
        """1 - sigma_s(v) / sigma_t(v) at tokens `ids`, 1 in the step to t = 1."""

    @abc.abstractmethod
    def most(self, row: Row) -> jax.Array:
        """The largest of `jump` over the vocabulary."""

    def sample(self, key: jax.Array, x_0: jax.Array, x_1: jax.Array, t: TimeLike) -> PathSample:
        """As `MixtureDiscreteProbPath.sample`, with each token's own kappa_t."""
        x_0, x_1 = as_pair(x_0, x_1)
        kappa, sigma, _ = clock(self, t, x_1.shape)
        keep = bernoulli(key, *self.schedule(x_1, kappa, sigma), x_1.shape)
        return PathSample(x_0, x_1, jnp.where(keep, x_1, x_0), t)

    def own_velocity(self) -> Velocity:
        return TokenForwardVelocity()

    def get_step(self, name: str) -> Any:
        return find_step(self, STEPS, name)


@dataclasses.dataclass(frozen=True, eq=False)
class KineticOptimalProbPath(TokenSchedulePath):
    """sigma(v) = sin^2(sigma W_v) / sin^2 W_v, W_v = acos sqrt p(v): the geodesic of sqrt(p), for any source law.

    `leave_one_out` logits are here those of the law of x_1 given the other tokens and that x_t is noise, to which x_t
    adds log1p(kappa(z) / (sigma(z) p(z))) at z; that is xhat up to factors sigma(v).
    """

    source: CategoricalSource

    bound_names: ClassVar[tuple[str, ...]] = ("generalized_kl",)

    def __post_init__(self) -> None:
        super().__post_init__()
        law = self.source.law
        if not law.max() < 1:
            raise ValueError(f"probs with maximum {law.max()}: accepted a source law of at least two tokens")
        angle = np.arccos(np.sqrt(law))
        # pi - 2W, and sin^2 W, from p itself: sin((1 + r) W) = sin(pi - 2W + tW) is then exact where t is small.
        tables = {"_angle": angle, "_short": 2 * np.arcsin(np.sqrt(law)), "_square": 1 - law}
        for name, value in tables.items():
            object.__setattr__(self, name, value)

    def check(self, source: Source, parametrization: str) -> None:
        if source is not self.source:
            raise ValueError(f"source={type(source).__name__}: accepted the path's own CategoricalSource")

    def angles(self, dtype: Any) -> jax.Array:
        """W (V,)."""
        return jnp.asarray(self._angle, dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def _at(self, name: str, ids: jax.Array, like: jax.Array) -> jax.Array:
        return jnp.asarray(getattr(self, name), like.dtype)[ids]

    def schedule(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        w, short, square = (self._at(name, ids, kappa) for name in ("_angle", "_short", "_square"))
        return jnp.sin(w * kappa) * jnp.sin(short + w * kappa) / square, jnp.sin(w * sigma) ** 2 / square

    def rate(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> jax.Array:
        return 2 / sigma * (1 - one_minus_y_cot_y(sigma * self._at("_angle", ids, sigma)))

    def evidence(self, x_t: jax.Array, kappa: jax.Array, sigma: jax.Array) -> Evidence:
        """Of the token at x_t, on its own schedule."""
        return evidence(*self.schedule(x_t, kappa, sigma), self.source.probs(x_t, kappa.dtype))

    def own_source(self) -> Source:
        return self.source

    def log_evidence(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
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
        # sin^2 a - sin^2 b = sin(a - b) sin(a + b), and sin(a + b) = sin(pi - a - b) where that is the smaller one.
        w, short = (self._at(name, ids, row["sigma"]) for name in ("_angle", "_short"))
        total = jnp.where(row["late"] > 1, jnp.sin(short + row["early"] * w), jnp.sin(row["late"] * w))
        jump = jnp.sin(row["step"] * w) * total / jnp.sin(row["sigma"] * w) ** 2
        return jnp.where(row["last"] > 0, 1.0, jnp.clip(jump, 0.0, 1.0))

    def most(self, row: Row) -> jax.Array:
        # The jump falls with W; a little more than its largest value costs nothing.
        likeliest = jnp.asarray(int(np.argmax(self.source.law)), jnp.int32)
        return jnp.minimum(self.jump(likeliest, row) * (1 + 1e-5), 1.0)

    def get_objective(self, name: str, source: Source, parametrization: str, suppress_mask: bool) -> Objective:
        return find_objective(self, {"generalized_kl": KineticOptimalKL}, name, source, parametrization, suppress_mask)


@dataclasses.dataclass(frozen=True, eq=False)
class GenMD4ProbPath(TokenSchedulePath):
    """kappa(v) = 1 - sigma^{w_v}, w_v = `exponents` (V,) > 0, for the mask source; all ones: the mixture path.

    `learned`: the exponents are a model's, put in place by `with_exponents` where a program has the model.
    """

    vocab_size: int
    exponents: Any = None
    learned: bool = False

    carries_over: ClassVar[bool] = True
    bound_names: ClassVar[tuple[str, ...]] = ("masked_elbo",)

    def __post_init__(self) -> None:
        super().__post_init__()
        w = np.ones(self.vocab_size) if self.exponents is None else self.exponents
        if np.shape(w) != (self.vocab_size,) or (isinstance(w, np.ndarray) and not (w > 0).all()):
            raise ValueError(f"exponents of shape {np.shape(w)}: accepted ({self.vocab_size},) numbers > 0")
        object.__setattr__(self, "exponents", w)

    def with_exponents(self, exponents: jax.Array) -> "GenMD4ProbPath":
        """The same path with w = `exponents` (V,), which may be traced."""
        return dataclasses.replace(self, exponents=exponents)

    def check(self, source: Source, parametrization: str) -> None:
        if not isinstance(source, MaskSource) or source.vocab_size != self.vocab_size:
            raise ValueError(f"source={type(source).__name__}: accepted MaskSource({self.vocab_size})")

    def weights(self, ids: jax.Array, dtype: Any) -> jax.Array:
        """w at tokens `ids`; at the mask that of the last token, which is not used."""
        return jnp.asarray(self.exponents, dtype)[jnp.minimum(ids, self.vocab_size - 1)]

    def schedule(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        power = self.weights(ids, kappa.dtype) * log_both(jnp, sigma, kappa)
        return -jnp.expm1(power), jnp.exp(power)

    def rate(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> jax.Array:
        return self.weights(ids, sigma.dtype) / sigma

    def own_source(self) -> Source:
        return MaskSource(self.vocab_size)

    def log_evidence(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
        kappa, _, _ = clock(self, t, x_t.shape)
        return jnp.zeros(x_t.shape, kappa.dtype)  # a mask says nothing, and other tokens are carried over

    def log_probability(self, x_t: jax.Array, x_1: jax.Array, t: TimeLike) -> jax.Array:
        """log C_t(x_t | x_1) of each position, (B, L), differentiable in the exponents."""
        kappa, sigma, _ = clock(self, t, x_1.shape)
        power = self.weights(x_1, kappa.dtype) * log_both(jnp, sigma, kappa)
        masked = x_t == self.vocab_size
        shown = jnp.log(-jnp.expm1(jnp.where(masked, -1.0, jnp.minimum(power, -1e-30))))
        return jnp.where(masked, power, shown)

    def step_scalars(self, knots: Knots) -> dict[str, np.ndarray]:
        with np.errstate(divide="ignore"):
            return {"hazard": np.where(knots.last, np.inf, np.log(knots.sigma[:-1] / knots.sigma[1:]))}

    def jump(self, ids: jax.Array, row: Row) -> jax.Array:
        return -jnp.expm1(-self.weights(ids, jnp.float32) * row["hazard"])

    def most(self, row: Row) -> jax.Array:
        return -jnp.expm1(-jnp.asarray(self.exponents, jnp.float32).max() * row["hazard"])

    def get_objective(self, name: str, source: Source, parametrization: str, suppress_mask: bool) -> Objective:
        losses = {"masked_elbo": GenMD4Bound, "generalized_kl": GenMD4Bound}
        return find_objective(self, losses, name, source, parametrization, suppress_mask)


@dataclasses.dataclass(frozen=True)
class KineticOptimalKL(PathObjective):
    """sum_{x != z} lambda(x) post(x) - 1[z != x_1] lambda(x_1) (1 + log post(x_1)) (mathematics.md D.2).

    With lambda(x) = (2 / sigma)(1 - e_x), e = 1 - y cot y, y = sigma W_x, one reduction sum_x e_x p_x: what is left of
    the rates is 1 - post(z), in closed form for leave-one-out logits, which keeps the loss finite at t = 1.
    """

    path: KineticOptimalProbPath

    bounds: ClassVar[str | None] = "one_way"

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        _, sigma, _ = clock(self.path, t, x_t.shape)
        scale = jnp.broadcast_to(sigma, x_t.shape)
        reduction = VocabReduction("cotangent", scale=scale, inner=self.path.angles(sigma.dtype))
        return self._gather(x_1, x_t)._replace(reduction=reduction)

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        if answer.reduced is None:
            raise ValueError("answer.reduced=None: accepted the reduction that this objective's query asks for")
        log_1, log_z, reduced = answer.at_ids[..., 0], answer.at_ids[..., 1], answer.reduced
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
        # noise (1 - xz - slower) / (noise + kappa xz), with noise / sigma taken out of it: it ends with sigma.
        noise_rate = 2 * e.noise / jnp.maximum(sigma, SIGMA_FLOOR)
        kept = noise_rate * (-jnp.expm1(log_z) - slower) / jnp.maximum(e.noise + e.kappa * xhat, DENOMINATOR_FLOOR)
        return jnp.where(changed, times_rate(rate, jnp.where(changed, moved, 0.0)), times_rate(d_kappa, kept))


@dataclasses.dataclass(frozen=True)
class GenMD4Bound(PathObjective):
    """1[z = m] [sum_v lambda(v) post(v) - lambda(x_1) (1 + log post(x_1))], lambda(v) = w_v / sigma; others carry over.

    Equal to the entropy with the exact posterior, for every w.
    """

    path: GenMD4ProbPath

    bounds: ClassVar[str | None] = "one_way"
    charges_masks_alone: ClassVar[bool] = True

    @property
    def suppress(self) -> int | None:
        return self.source.mask_id

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        weights = jnp.pad(jnp.asarray(self.path.exponents, jnp.result_type(float)), (0, 1))
        return self._gather(x_1)._replace(reduction=VocabReduction("linear", weights=weights))

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        if answer.reduced is None:
            raise ValueError("answer.reduced=None: accepted the reduction that this objective's query asks for")
        log_1 = answer.at_ids[..., 0]
        _, sigma, d_kappa = (x.astype(log_1.dtype) for x in clock(self.path, t, x_t.shape))
        w = self.path.weights(x_1, log_1.dtype)
        charged = jnp.where(x_t == self.source.mask_id, answer.reduced - w * (1 + log_1), 0.0)
        ended = sigma <= 0
        return times_rate(jnp.where(ended, jnp.inf, d_kappa / jnp.where(ended, 1.0, sigma)), charged)


@dataclasses.dataclass(frozen=True)
class TokenForwardVelocity(Velocity):
    """lambda(x_1) (delta_{x_1}(x) - delta_z(x)) of a `TokenSchedulePath`."""

    def rates(self, post: jax.Array, x_t: jax.Array, time: Time, path: Any, source: Source) -> jax.Array:
        out = path.scheduler(time)
        ids = jnp.arange(source.num_states, dtype=jnp.int32).reshape((1,) * (post.ndim - 1) + (-1,))
        rates = path.rate(ids, out.alpha_t.astype(post.dtype), out.sigma_t.astype(post.dtype))
        rates = jnp.where(out.sigma_t <= 0, jnp.inf, out.d_alpha_t.astype(post.dtype) * rates)
        return times_rate(rates, post)
