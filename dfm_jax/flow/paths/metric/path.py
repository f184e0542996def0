"""The metric path: x_t moves towards x_1 through tokens that lie close to it (mathematics.md C.5).

    C_t(x | x_1) = softmax_x(-beta d(x, x_1)),  d(x, y) = |e_x - e_y|^(2 power),  e the embeddings

beta_0 = 0 gives the uniform source and beta_1 = inf the data. One row of C takes one row of distances, which is a
product with the table of embeddings. The functions below work in blocks of rows, so that no (B, L, V) array exists.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow import categorical
from dfm_jax.flow.head import HeadAnswer, HeadQuery
from dfm_jax.flow.losses.objective import Objective, times_rate
from dfm_jax.flow.paths.base import Path, PathSample, clock, find_objective, find_step
from dfm_jax.flow.paths.metric.beta import Beta, PowerBeta, beta_float32
from dfm_jax.flow.paths.metric.steps import STEPS
from dfm_jax.flow.paths.velocity import Velocity, flux
from dfm_jax.flow.random import by_row
from dfm_jax.flow.sources import Source, UniformSource
from dfm_jax.flow.time import Time, TimeLike

# The most numbers in one block of rows of distances, over all devices.
BLOCK = 2**27
# The exact bound takes V^2 operations per token. It is not reported for a larger vocabulary than this.
MOST_TOKENS_FOR_BOUND = 512


@dataclasses.dataclass(frozen=True, eq=False)
class MetricProbPath(Path):
    """softmax(-beta d(x, x_1)) with distances d(x, y) = |e_x - e_y|^(2 power) from `embeddings` (V, D).

    power: 1 is the squared distance (URSA), 2 its square (FUDOKI). beta: a function of the clock's kappa and sigma. A
    `jax.ShapeDtypeStruct` in place of embeddings serves to compile a program. Raises ValueError for embeddings that are
    not finite or not distinct, and for power <= 0.
    """

    embeddings: np.ndarray
    beta: Beta = dataclasses.field(default_factory=PowerBeta)
    power: float = 1.0

    leaves: ClassVar[tuple[str, ...]] = ("embeddings", "farthest")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.embeddings, jax.ShapeDtypeStruct):
            object.__setattr__(self, "farthest", jax.ShapeDtypeStruct((), self.embeddings.dtype))
            return
        table = np.asarray(self.embeddings)
        table = table if table.dtype in (np.float32, np.float64) else table.astype(np.float64)
        if table.ndim != 2 or not np.isfinite(table).all() or len(np.unique(table, axis=0)) < len(table):
            raise ValueError(f"embeddings of shape {table.shape}: expected (V, D) finite numbers, no two rows alike")
        if not self.power > 0:
            raise ValueError(f"power = {self.power!r}: expected a number > 0")
        object.__setattr__(self, "embeddings", table)
        # An upper bound of all distances.
        object.__setattr__(self, "farthest", (2 * np.linalg.norm(table, axis=1).max()) ** (2 * self.power))

    @property
    def vocab_size(self) -> int:
        """V, the number of embeddings."""
        return self.embeddings.shape[0]

    @property
    def bound_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`generalized_kl`, the exact bound, if the vocabulary is small enough for it."""
        return ("generalized_kl",) if self.vocab_size <= MOST_TOKENS_FOR_BOUND else ()

    def check(self, source: Source, parametrization: str) -> None:
        if not isinstance(source, UniformSource) or source.vocab_size != self.vocab_size:
            raise ValueError(f"source = {type(source).__name__}: expected UniformSource({self.vocab_size})")
        if parametrization != "posterior":
            raise ValueError(f"parametrization = {parametrization!r}: expected posterior, for all of C depends on x_1")

    def distances(self, ids: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        """d(x, y) from tokens y = `ids` (...) to every x, (..., V); exactly 0 at x = y."""
        table = jnp.asarray(self.embeddings, dtype)
        square = (table**2).sum(axis=-1)
        product = jnp.einsum("...d,vd->...v", table[ids], table, precision="highest")
        apart = jnp.maximum(square[ids][..., None] + _last(square, product) - 2 * product, 0.0)
        apart = apart if self.power == 1 else apart**self.power
        return jnp.where(_last(jnp.arange(self.vocab_size, dtype=ids.dtype), product) == ids[..., None], 0.0, apart)

    def sample(self, key: jax.Array, x_0: jax.Array, x_1: jax.Array, t: TimeLike) -> PathSample:
        """Draws x_t ~ C_t(. | x_1) from two 32-bit words per token. x_0 is not used. Shapes: see `Path.sample`."""
        kappa, sigma, _ = clock(self, t, x_1.shape)
        beta, _ = beta_float32(self.beta, kappa, sigma)
        words = by_row(lambda k, s: jax.random.bits(k, (*s, 2), jnp.uint32), key, x_1.shape)

        def draw(x_1: jax.Array, beta: jax.Array, words: jax.Array) -> jax.Array:
            mass = jnp.exp(-beta[..., None] * self.distances(x_1))
            rows = mass.reshape(-1, self.vocab_size)
            return categorical.pick(rows, words.reshape(-1, 2)).reshape(x_1.shape)

        return PathSample(x_0, x_1, self.in_blocks(draw, x_1, jnp.broadcast_to(beta, x_1.shape), words), t)

    def in_blocks(self, function: Callable[..., jax.Array], *arrays: jax.Array, per_row: int = 1) -> jax.Array:
        """Applies `function` to arrays (B, L, ...), a few columns at a time, and returns its (B, L) result.

        per_row: how many rows of V numbers `function` needs for each position.
        """
        batch, length = arrays[0].shape[:2]
        size = int(min(max(BLOCK // (batch * self.vocab_size * per_row), 1), length))
        count = -(-length // size)

        def cut(x: jax.Array) -> jax.Array:
            x = jnp.pad(x, [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2), mode="edge")
            return jnp.swapaxes(x.reshape(batch, count, size, *x.shape[2:]), 0, 1)

        if count == 1:
            return function(*arrays)
        parts = jax.lax.map(lambda block: function(*block), tuple(cut(x) for x in arrays))
        return jnp.swapaxes(parts, 0, 1).reshape(batch, count * size)[:, :length]

    def own_source(self) -> Source:
        return UniformSource(self.vocab_size)

    def own_velocity(self) -> Velocity:
        return MetricVelocity()

    def get_objective(self, name: str, source: Source, parametrization: str, suppress_mask: bool) -> Objective:
        return find_objective(self, {"generalized_kl": MetricKL}, name, source, parametrization, suppress_mask)

    def get_step(self, name: str) -> Any:
        return find_step(self, STEPS, name)


@dataclasses.dataclass(frozen=True)
class MetricKL(Objective):
    """The exact bound of the kinetic-optimal velocity, in V^2 operations per token (mathematics.md D.1, C.5).

    It is d beta / dt sum_{x != z} [u_th - u + u log(u / u_th)], with u(x, z|v) = C(x|v) [d(z, v) - d(x, v)]_+. u is
    taken at v = x_1, and u_th is its mean over the posterior of v. The query asks for the log-probability of every
    token.
    """

    path: MetricProbPath

    bounds: ClassVar[str | None] = "one_way"

    def query(self, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> HeadQuery:
        states = _last(jnp.arange(self.path.vocab_size, dtype=x_1.dtype), x_1[..., None])
        return HeadQuery(jnp.broadcast_to(states, (*x_1.shape, self.path.vocab_size)))

    def __call__(self, answer: HeadAnswer, x_1: jax.Array, x_t: jax.Array, t: TimeLike) -> jax.Array:
        path, log_post = self.path, answer.at_ids
        dtype = log_post.dtype
        kappa, sigma, d_kappa = (x.astype(dtype) for x in clock(path, t, x_1.shape))
        beta, slope = beta_float32(path.beta, kappa, sigma)
        every = jnp.arange(path.vocab_size, dtype=x_1.dtype)
        apart = path.distances(every, dtype)  # [v, x]

        def block(x_1: jax.Array, x_t: jax.Array, beta: jax.Array, log_post: jax.Array) -> jax.Array:
            law = jax.nn.softmax(-beta[..., None, None] * apart[None, None], axis=-1)  # (B, L, v, x)
            closer = jnp.maximum(apart.T[x_t][..., None] - apart[None, None], 0.0)
            rates = law * closer
            model = jnp.einsum("blv,blvx->blx", jnp.exp(log_post), rates, precision="highest")
            one = jnp.take_along_axis(rates, x_1[..., None, None], axis=2)[..., 0, :]
            moves = one > 0
            ratio = jnp.log(jnp.where(moves, one, 1.0)) - jnp.log(jnp.where(moves, jnp.maximum(model, 1e-37), 1.0))
            return (model - one + one * ratio).sum(axis=-1)

        nats = path.in_blocks(block, x_1, x_t, jnp.broadcast_to(beta, x_1.shape), log_post, per_row=4 * path.vocab_size)
        return times_rate(d_kappa, slope * nats)


@dataclasses.dataclass(frozen=True)
class MetricVelocity(Velocity):
    """The velocity of a `MetricProbPath` that `flow.flux` gives for a power, for small V.

    power: see `reference_law`; None is kinetic-optimal.
    """

    power: float | None = None

    def rates(self, post: jax.Array, x_t: jax.Array, time: Time, path: Any, source: Source) -> jax.Array:
        out = path.scheduler(time)
        beta, slope = beta_float32(path.beta, out.alpha_t, out.sigma_t)
        every = jnp.arange(path.vocab_size, dtype=x_t.dtype)
        apart = path.distances(every, post.dtype)
        scale = jnp.broadcast_to(beta, (*x_t.shape, 1))[..., None].astype(post.dtype)
        law = jax.nn.softmax(-scale * _last(apart, scale, 2), axis=-1)  # (B, L, v, x)
        mean = (law * _last(apart, law, 2)).sum(axis=-1, keepdims=True)
        change = -slope.astype(post.dtype)[..., None] * law * (_last(apart, law, 2) - mean)
        rates = flux(law, change, x_t[..., None], self.power)
        return times_rate(out.d_alpha_t, jnp.einsum("...v,...vx->...x", post, rates, precision="highest"))


def _last(table: jax.Array, like: jax.Array, axes: int = 1) -> jax.Array:
    """`table` with leading axes of size 1, so that it has as many axes as `like`; `axes` is how many it has."""
    return table.reshape((1,) * (like.ndim - axes) + table.shape)
