"""One categorical draw per row from two 32-bit words: the two-level inverse CDF (mathematics.md E.4, remedy 2).

The Gumbel-max draw in float32 needs one word per vocabulary entry. It also draws rare tokens too seldom, because its
uniforms lie on a grid of 2^-23. Here the vocabulary is cut into blocks. One word picks the block, a second word picks
the token inside it. Both levels use integer masses that sum to 2^32 - 1, so a probability is off by at most 2^-32 of
its level. A category of probability 0 is never drawn.
"""

import jax
import jax.numpy as jnp

BLOCK = 256
# The largest float32 below 2^32. One category gets at most this before the sum is corrected.
_LARGEST = 4294967040.0
_FULL = 0xFFFFFFFF


def uniform(bits: jax.Array) -> jax.Array:
    """Uniforms in (0, 1) from uint32 words, float32 of their shape.

    The resolution is 2^-32 near 0, for events of small probability, and 2^-24 near 1. `uniform(bits) < a` has the
    probability a to within 2^-33 and the float32 rounding of a. It is always true for a = 1.
    """
    return jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1.0 - 2.0**-24)


def integer_masses(masses: jax.Array) -> jax.Array:
    """Scales `masses` (N, K) float32 >= 0 to uint32 (N, K), so that each row sums to 2^32 - 1; 0 stays 0.

    This is the exact law of one level of `draw`: category k has probability integer_masses[k] / (2^32 - 1), to 2^-32.
    """
    share = masses / masses.sum(-1, keepdims=True)
    count = jnp.minimum(jnp.round(share * 2.0**32), _LARGEST).astype(jnp.uint32)
    # After rounding the sum differs a little from 2^32 - 1. The largest category takes the difference (modulo 2^32).
    missing = jnp.uint32(_FULL) - count.sum(-1, dtype=jnp.uint32)
    columns = jax.lax.broadcasted_iota(jnp.int32, masses.shape, 1)
    largest = columns == jnp.argmax(masses, -1).astype(jnp.int32)[:, None]
    return jnp.where(largest, count + missing[:, None], count)


def _pick(masses: jax.Array, word: jax.Array) -> jax.Array:
    """Index drawn with probability proportional to `masses` (N, K) float32 >= 0, by `word` (N,) uint32."""
    upper = jnp.cumsum(integer_masses(masses), -1, dtype=jnp.uint32)
    level = jnp.minimum(word, jnp.uint32(_FULL - 1))
    return (level[:, None] >= upper).sum(-1, dtype=jnp.int32)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Keeps of logits (N, S) the smallest set of total probability >= top_p; all others become -inf.

    Entries that tie with the last one kept are kept too. It sorts each row.
    """
    ordered = -jnp.sort(-logits, -1)
    share = jax.nn.softmax(ordered, -1)
    before = jnp.cumsum(share, -1) - share
    last = jnp.maximum((before < top_p).sum(-1, keepdims=True) - 1, 0)
    return jnp.where(logits >= jnp.take_along_axis(ordered, last, -1), logits, -jnp.inf)


def temper(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """logits (N, S) / temperature (N,). At temperature 0 all but the largest entries of a row become -inf."""
    hot = temperature[:, None] > 0
    scaled = logits / jnp.where(hot, temperature[:, None], 1.0)
    greedy = jnp.where(logits == logits.max(-1, keepdims=True), 0.0, -jnp.inf)
    return jnp.where(hot, scaled, greedy)


def draw(keys: jax.Array, logits: jax.Array) -> jax.Array:
    """One category per row: int32 (N,) ~ softmax(logits), logits (N, S) of any float type, -inf allowed.

    keys: (N,) typed keys. Row n takes two 32-bit words from its own key and depends on no other.
    """
    words = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)
    logits = logits.astype(jnp.float32)
    return pick(jnp.exp(logits - logits.max(-1, keepdims=True)), words)


def pick(mass: jax.Array, words: jax.Array) -> jax.Array:
    """One category per row, int32 (N,), drawn in proportion to `mass` (N, S) float32 >= 0 by `words` (N, 2) uint32."""
    rows, states = mass.shape
    blocks = -(-states // BLOCK)
    mass = jnp.pad(mass, ((0, 0), (0, blocks * BLOCK - states))).reshape(rows, blocks, BLOCK)
    block = _pick(mass.sum(-1), words[:, 0])
    inside = jnp.take_along_axis(mass, block[:, None, None], 1)[:, 0]
    return block * BLOCK + _pick(inside, words[:, 1])
