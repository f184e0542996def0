"""Sources, the laws p(x) of x_0: the mask, uniform, or any categorical law (mathematics.md B)."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.random import by_row, split
from dfm_jax.flow.tree import Tree


class Source(Tree, abc.ABC):
    """A token law p over S = num_states states, V = vocab_size of which are data.

    A subclass names its array attributes in `leaves` (`flow.Tree`).
    """

    vocab_size: int

    @property
    def num_states(self) -> int:
        """S, the number of states: V + 1 with a mask token, else V."""
        return self.vocab_size

    @property
    def num_tokens(self) -> int:
        """`num_states`, under the name that tokenizers use."""
        return self.num_states

    @property
    def mask_id(self) -> int | None:
        """The id of the mask token, None without one."""
        return None

    @abc.abstractmethod
    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws x_0 of `shape`, int32. `key` is one key, or (B,) keys, one for each row of the shape."""

    @abc.abstractmethod
    def probs(self, ids: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        """p(x) at `ids`, of their shape, in `dtype`."""

    def log_probs(self, ids: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        """log p(x) at `ids`, nats; -inf where p = 0."""
        return jnp.log(self.probs(ids, dtype))

    def table(self, dtype: Any = jnp.float32) -> jax.Array | None:
        """p as an (S,) array; None when p is the same number for every state."""
        return self.probs(jnp.arange(self.num_states), dtype)


@dataclasses.dataclass(frozen=True)
class MaskSource(Source):
    """p = delta_m: x_0 is the mask token, whose id is m = V."""

    vocab_size: int

    def __post_init__(self) -> None:
        _check_vocab_size(self.vocab_size)

    @property
    def num_states(self) -> int:
        return self.vocab_size + 1

    @property
    def mask_id(self) -> int:
        return self.vocab_size

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jnp.full(shape, self.mask_id, jnp.int32)

    def probs(self, ids: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        return (ids == self.mask_id).astype(dtype)


@dataclasses.dataclass(frozen=True)
class UniformSource(Source):
    """p = 1/V. x_0 may equal x_1 by chance."""

    vocab_size: int

    def __post_init__(self) -> None:
        _check_vocab_size(self.vocab_size)

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return by_row(lambda k, s: jax.random.randint(k, s, 0, self.vocab_size, jnp.int32), key, shape)

    def probs(self, ids: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.full(jnp.shape(ids), 1 / self.vocab_size, dtype)

    def table(self, dtype: Any = jnp.float32) -> None:
        return None


class CategoricalSource(Source):
    """p = `probs` (V,), any law over the vocabulary, such as a corpus's unigram.

    A draw is one look-up in an alias table; its probabilities are exact to 2^-32 of 1/V. A token with p = 0 is never
    drawn. If x_t is such a token it must be x_1, and it is carried over. Raises ValueError unless probs >= 0 and their
    sum is 1 to within 1e-5. A `jax.ShapeDtypeStruct` (V,) in place of numbers serves to compile a program.
    """

    leaves: ClassVar[tuple[str, ...]] = ("law", "_keep", "_alias")

    def __init__(self, probs: Any) -> None:
        self.law: Any
        if isinstance(probs, jax.ShapeDtypeStruct):
            self.vocab_size = probs.shape[0]
            self.law = probs
            self._keep = jax.ShapeDtypeStruct(probs.shape, jnp.uint32)
            self._alias = jax.ShapeDtypeStruct(probs.shape, jnp.int32)
            return
        law = np.asarray(probs, dtype=np.float64)
        if law.ndim != 1 or len(law) < 1 or not (law >= 0).all() or abs(law.sum() - 1) > 1e-5:
            raise ValueError(f"probs with sum {law.sum()}: expected one vector of values >= 0 that sum to 1")
        self.vocab_size = len(law)
        self.law = law / law.sum()
        self._keep, self._alias = _alias_table(self.law)

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        column_key, coin_key = split(key, 2)
        column = by_row(lambda k, s: jax.random.randint(k, s, 0, self.vocab_size, jnp.int32), column_key, shape)
        coin = by_row(lambda k, s: jax.random.bits(k, s, jnp.uint32), coin_key, shape)
        keep, alias = jnp.asarray(self._keep)[column], jnp.asarray(self._alias)[column]
        return jnp.where(coin < keep, column, alias)

    def probs(self, ids: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.asarray(self.law, dtype)[ids]

    def may_equal(self, other: "CategoricalSource") -> bool:
        """Whether `other` may be the same law. Inside a program only the sizes are known and compared."""
        if self.vocab_size != other.vocab_size:
            return False
        known = isinstance(self.law, np.ndarray) and isinstance(other.law, np.ndarray)
        return not known or np.array_equal(self.law, other.law)


def _alias_table(law: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias table: for each column a threshold out of 2^32 (uint32) and an alternative (int32)."""
    size = len(law)
    height, alias = law * size, np.arange(size, dtype=np.int32)
    short = [i for i in range(size) if height[i] < 1]
    tall = [i for i in range(size) if height[i] >= 1]
    while short and tall:
        low, high = short.pop(), tall[-1]
        alias[low] = high
        height[high] -= 1 - height[low]
        if height[high] < 1:
            short.append(tall.pop())
    # The columns that are left have height 1 up to rounding. Each is its own alias.
    keep = np.clip(np.rint(height * 2.0**32), 0, 2.0**32 - 1).astype(np.uint32)
    return keep, alias


def get_source(name: str, vocab_size: int, probs: Any = None) -> Source:
    """The source called `name` in a config: 'mask', 'uniform', or 'categorical' with `probs` (V,).

    Raises ValueError for an unknown name, or a law of another length than `vocab_size`.
    """
    if name == "mask":
        return MaskSource(vocab_size)
    if name == "uniform":
        return UniformSource(vocab_size)
    if name != "categorical":
        raise ValueError(f"source = {name!r}: expected mask, uniform, categorical")
    shape = None if probs is None else probs.shape if hasattr(probs, "shape") else np.shape(probs)
    if shape != (vocab_size,):
        raise ValueError(f"probs of shape {shape}: expected ({vocab_size},) for source='categorical'")
    return CategoricalSource(probs)


def _check_vocab_size(vocab_size: int) -> None:
    if not (isinstance(vocab_size, (int, np.integer)) and vocab_size >= 1):
        raise ValueError(f"vocab_size = {vocab_size!r}: expected an integer >= 1")
