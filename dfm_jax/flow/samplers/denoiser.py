"""What a solver asks of a model: features of a sequence, and draws of x_1 at the positions that need one."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from dfm_jax.flow import categorical


@runtime_checkable
class Denoiser(Protocol):
    """The posterior p_{1|t}(x_1^i = v | x_t), split where the sampler can save work.

    `features` runs the trunk once per step on whole sequences; `draw` runs the vocabulary head only at the rows
    gathered from it, so that no (B, L, S) array need exist.
    """

    def features(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """(B, L, D) float from tokens x (B, L) int32 and times t (B,) float32."""
        ...

    def draw(self, keys: jax.Array, features: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """x_1 ~ posterior, int32 (N,), from keys (N,), features (N, D), x_t (N,) int32, t (N,) float32.

        Row n may depend only on its own key and inputs: then a draw depends neither on how the solver groups rows
        nor on the mesh.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class DenseDenoiser:
    """A model that gives all its posterior logits at once; its features are the logits. See `from_logits`."""

    logits: Callable[[jax.Array, jax.Array], jax.Array]
    temperature: float | Callable[[jax.Array], jax.Array] = 1.0
    top_p: float = 1.0
    suppress: int | None = None
    num_states: int | None = None

    def __post_init__(self):
        if not callable(self.temperature) and not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: accepted a number >= 0, or a function of t")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: accepted 0 < top_p <= 1")

    def features(self, x: jax.Array, t: jax.Array) -> jax.Array:
        logits = self.logits(x, t)
        states = logits.shape[-1] if self.num_states is None else self.num_states
        if logits.shape != (*x.shape, states):
            raise ValueError(f"logits of shape {logits.shape}: accepted (B, L, S) = {(*x.shape, states)}")
        return logits

    def draw(self, keys: jax.Array, features: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
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

    x_1 is drawn from softmax(logits / temperature) restricted to its nucleus of mass top_p (in this order), never
    equal to `suppress`. temperature: a number >= 0 (0: the most probable token) or a function of t (N,) -> (N,).
    A solver fills `suppress` with the mask id of its source. Leave-one-out models: wrap with `flow.to_posterior`
    first.

    Raises ValueError: temperature < 0, top_p outside (0, 1], logits of another shape.
    """
    return DenseDenoiser(fn, temperature, top_p, suppress)


class Answer(NamedTuple):
    """What a step gets of a denoiser: x_1 (B, L) int32, drawn where it was asked for and x_t elsewhere."""

    x_1: jax.Array


def draw_where(
    denoiser: Denoiser, keys: jax.Array, x: jax.Array, t: jax.Array, needed: jax.Array, group: int
) -> Answer:
    """x with x_1 ~ posterior drawn where `needed`; the trunk is skipped when nothing is.

    keys (B,) typed, x (B, L) int32, t (B,) float32, needed (B, L) bool, group: rows per call of the head (static).
    Rows are gathered in groups of `group`, as many groups as there are needed positions: any number is exact. The
    draw at (b, l) is keyed by fold_in(keys[b], l).
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
