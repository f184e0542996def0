"""What a sampler asks of a model: the features of a sequence, and draws of x_1 at the positions that need them."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from dfm_jax.flow import categorical


@runtime_checkable
class Denoiser(Protocol):
    """A model of the posterior p(x_1^i = v | x_t), in two parts so that a sampler can save work.

    `features` runs the trunk on whole sequences, once per step. `draw` runs the vocabulary head only at the positions
    that need x_1, so no (B, L, S) array has to exist.
    """

    def features(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """Features (B, L, D), of a float type, from tokens x (B, L) int32 and times t (B,) float32."""
        ...

    def draw(self, keys: jax.Array, features: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """Draws x_1 ~ posterior, (N,) int32, from keys (N,), features (N, D), x_t (N,) int32 and t (N,) float32.

        Row n may depend only on its own key and inputs. The draw is then the same however the solver groups rows, and
        on every mesh.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class DenseDenoiser:
    """A `Denoiser` of a model that returns posterior logits; its features are the logits. See `from_logits`."""

    logits: Callable[[jax.Array, jax.Array], jax.Array]
    temperature: float | Callable[[jax.Array], jax.Array] = 1.0
    top_p: float = 1.0
    suppress: int | None = None
    num_states: int | None = None

    def __post_init__(self):
        if not callable(self.temperature) and not self.temperature >= 0:
            raise ValueError(f"temperature = {self.temperature}: expected a number >= 0, or a function of t")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: expected 0 < top_p <= 1")

    def features(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """The logits (B, L, S) of x (B, L) int32 at t (B,). Raises ValueError for logits of another shape."""
        logits = self.logits(x, t)
        states = logits.shape[-1] if self.num_states is None else self.num_states
        if logits.shape != (*x.shape, states):
            raise ValueError(f"logits of shape {logits.shape}: expected (B, L, S) = {(*x.shape, states)}")
        return logits

    def draw(self, keys: jax.Array, features: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """x_1 (N,) int32 from logits `features` (N, S), keys (N,) and t (N,); x_t is not used."""
        logits = features.astype(jnp.float32)
        if self.suppress is not None:
            logits = logits.at[:, self.suppress].set(-jnp.inf)
        if callable(self.temperature):
            logits = categorical.temper(logits, jnp.broadcast_to(self.temperature(t), t.shape))
        elif self.temperature != 1.0:
            logits = categorical.temper(logits, jnp.full(t.shape, self.temperature, jnp.float32))
        if self.top_p < 1.0:
            logits = categorical.nucleus(logits, self.top_p)
        return categorical.draw(keys, logits)


def from_logits(
    fn: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    temperature: float | Callable[[jax.Array], jax.Array] = 1.0,
    top_p: float = 1.0,
    suppress: int | None = None,
) -> DenseDenoiser:
    """The `Denoiser` of a dense model: fn(x (B, L) int32, t (B,) float32) -> posterior logits (B, L, S).

    x_1 is drawn from softmax(logits / temperature), restricted after that to its nucleus of mass top_p.

    temperature: a number >= 0, where 0 gives the most probable token, or a function of t (N,) -> (N,). suppress: a
    state that is never drawn; a solver sets it to the mask id of its source. Logits of a leave-one-out model must go
    through `flow.to_posterior` first.

    Raises ValueError for temperature < 0, top_p outside (0, 1], and, in use, for logits of another shape.
    """
    return DenseDenoiser(fn, temperature, top_p, suppress)


class Answer(NamedTuple):
    """What a denoiser returns to a step: x_1 (B, L) int32, drawn where the step asked for it and x_t elsewhere."""

    x_1: jax.Array


def draw_where(
    denoiser: Denoiser, keys: jax.Array, x: jax.Array, t: jax.Array, needed: jax.Array, group: int
) -> Answer:
    """Draws x_1 ~ posterior where `needed`, and leaves x elsewhere. If nothing is needed the trunk does not run.

    keys: (B,) typed. x: (B, L) int32. t: (B,) float32. needed: (B, L) bool. group: rows per call of the head (static).
    The needed positions are gathered into groups of `group` rows, as many groups as it takes. The draw at (b, l) has
    the key fold_in(keys[b], l).
    """
    batch, length = x.shape
    positions = batch * length

    def some(x):
        features = denoiser.features(x, t)
        features = features.reshape(positions, features.shape[-1])
        flat = x.reshape(-1)
        padded = -(-positions // group) * group
        order = jnp.nonzero(needed.reshape(-1), size=padded, fill_value=positions)[0].astype(jnp.int32)
        count = needed.sum(dtype=jnp.int32)

        def one_group(state):
            done, x_1 = state
            rows = jax.lax.dynamic_slice(order, (done,), (group,))
            inside = jnp.minimum(rows, positions - 1)
            sequence, place = inside // length, inside % length
            drawn = denoiser.draw(
                jax.vmap(jax.random.fold_in)(keys[sequence], place), features[inside], flat[inside], t[sequence]
            )
            return done + group, x_1.at[rows].set(drawn.astype(x.dtype), mode="drop")

        _, x_1 = jax.lax.while_loop(lambda state: state[0] < count, one_group, (jnp.int32(0), flat))
        return x_1.reshape(batch, length)

    return Answer(jax.lax.cond(needed.any(), some, lambda x: x, x))
