"""GenMD4's path, where sigma of each token is a power of the clock's sigma, for the mask source (mathematics.md C.3).

kappa(v) = 1 - sigma^{w_v}
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.head import HeadAnswer, HeadQuery, VocabReduction
from dfm_jax.flow.losses.objective import Objective, times_rate
from dfm_jax.flow.paths.base import clock, find_objective
from dfm_jax.flow.paths.token_schedules.base import TokenSchedulePath
from dfm_jax.flow.samplers.step import Knots, Row
from dfm_jax.flow.schedulers.base import log_both
from dfm_jax.flow.sources import MaskSource, Source
from dfm_jax.flow.time import TimeLike


@dataclasses.dataclass(frozen=True, eq=False)
class GenMD4ProbPath(TokenSchedulePath):
    """kappa(v) = 1 - sigma^{w_v} with w = `exponents` (V,) > 0, for the mask source. All ones is the mixture path.

    learned: the exponents are parameters of a model. A program that has the model puts them in with `with_exponents`.
    Raises ValueError for exponents of another shape or <= 0.
    """

    vocab_size: int
    exponents: Any = None
    learned: bool = False

    leaves: ClassVar[tuple[str, ...]] = ("exponents",)
    carries_over: ClassVar[bool] = True
    bound_names: ClassVar[tuple[str, ...]] = ("masked_elbo",)

    def __post_init__(self) -> None:
        super().__post_init__()
        w = np.ones(self.vocab_size) if self.exponents is None else self.exponents
        shape = w.shape if hasattr(w, "shape") else np.shape(w)
        if shape != (self.vocab_size,) or (isinstance(w, np.ndarray) and not (w > 0).all()):
            raise ValueError(f"exponents of shape {shape}: expected ({self.vocab_size},) numbers > 0")
        object.__setattr__(self, "exponents", w)

    @property
    def learns(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the exponents are parameters of a model."""
        return self.learned

    def with_exponents(self, exponents: jax.Array) -> "GenMD4ProbPath":
        """The same path with w = `exponents` (V,), which may be a traced array."""
        return dataclasses.replace(self, exponents=exponents)

    def check(self, source: Source, parametrization: str) -> None:
        if not isinstance(source, MaskSource) or source.vocab_size != self.vocab_size:
            raise ValueError(f"source = {type(source).__name__}: expected MaskSource({self.vocab_size})")

    def weights(self, ids: jax.Array, dtype: Any) -> jax.Array:
        """w of tokens `ids`, of their shape. The mask gets the w of the last token, which no caller uses."""
        return jnp.asarray(self.exponents, dtype)[jnp.minimum(ids, self.vocab_size - 1)]

    def schedule(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        power = self.weights(ids, kappa.dtype) * log_both(jnp, sigma, kappa)
        return -jnp.expm1(power), jnp.exp(power)

    def rate(self, ids: jax.Array, kappa: jax.Array, sigma: jax.Array) -> jax.Array:
        return self.weights(ids, sigma.dtype) / sigma

    def own_source(self) -> Source:
        return MaskSource(self.vocab_size)

    def loo_logit_shift(self, x_t: jax.Array, t: TimeLike, source: Source) -> jax.Array:
        kappa, _, _ = clock(self, t, x_t.shape)
        return jnp.zeros(x_t.shape, kappa.dtype)  # a mask tells nothing about x_1; other tokens are carried over

    def log_probability(self, x_t: jax.Array, x_1: jax.Array, t: TimeLike) -> jax.Array:
        """log C_t(x_t | x_1) of each position, (B, L) nats, differentiable in the exponents."""
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
class GenMD4Bound(Objective):
    """1[z = m] [sum_v lambda(v) post(v) - lambda(x_1) (1 + log post(x_1))], with lambda(v) = w_v / sigma.

    Tokens that are not the mask are carried over and carry no loss. With the exact posterior the bound equals the
    entropy, for every w (mathematics.md C.3).
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
        log_1 = answer.at_ids[..., 0]
        _, sigma, d_kappa = (x.astype(log_1.dtype) for x in clock(self.path, t, x_t.shape))
        w = self.path.weights(x_1, log_1.dtype)
        charged = jnp.where(x_t == self.source.mask_id, self._reduced(answer) - w * (1 + log_1), 0.0)
        ended = sigma <= 0
        return times_rate(jnp.where(ended, jnp.inf, d_kappa / jnp.where(ended, 1.0, sigma)), charged)
