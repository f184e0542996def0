"""One categorical draw per row from two 32-bit words: the two-level inverse CDF (mathematics.md, E.4, remedy 2).

A float32 Gumbel-max takes one word per vocabulary entry and lets rare tokens win too seldom: its uniforms live on
a grid of 2^-23. Here the vocabulary is cut into blocks; one word picks the block, a second one the token inside
it. Both levels work on integer masses that sum to 2^32 - 1, so a category is favoured or starved by at most 2^-32
of its level, and a category of probability zero is never drawn.
"""

import jax
import jax.numpy as jnp

BLOCK = 256
# The largest float32 below 2^32: what a lone category may be given before the sum is corrected.
_LARGEST = 4294967040.0
_FULL = 0xFFFFFFFF


def uniform(bits: jax.Array) -> jax.Array:
    """Uniforms in (0, 1) from uint32 words, float32: resolution 2^-32 near 0 (events of small probability), 2^-24
    near 1.

    `uniform(bits) < a` has probability a within 2^-33 plus float32 rounding of a, and is certain for a = 1.
    """
    return jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1.0 - 2.0**-24)


def integer_masses(masses: jax.Array) -> jax.Array:
    """`masses` (N, K) float32 >= 0 as uint32 (N, K) in proportion, with sum 2^32 - 1 in each row; 0 stays 0.

    The exact law of a level of `draw`: category k has probability integer_masses[k] / (2^32 - 1), to 2^-32.
    """
    share = masses / masses.sum(-1, keepdims=True)
    count = jnp.minimum(jnp.round(share * 2.0**32), _LARGEST).astype(jnp.uint32)
    # Rounding leaves the sum a little off 2^32 - 1; the largest category absorbs it (arithmetic modulo 2^32).
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
    """Logits (N, S) with everything outside the smallest set of total probability >= top_p at -inf.

    Entries that tie with the last one kept are kept too. Costs a sort of each row.
    """
    ordered = -jnp.sort(-logits, -1)
    share = jax.nn.softmax(ordered, -1)
    before = jnp.cumsum(share, -1) - share
    last = jnp.maximum((before < top_p).sum(-1, keepdims=True) - 1, 0)
    return jnp.where(logits >= jnp.take_along_axis(ordered, last, -1), logits, -jnp.inf)


def temper(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """logits (N, S) / temperature (N,); temperature 0 leaves the largest entries of a row, and only them."""
    hot = temperature[:, None] > 0
    scaled = logits / jnp.where(hot, temperature[:, None], 1.0)
    greedy = jnp.where(logits == logits.max(-1, keepdims=True), 0.0, -jnp.inf)
    return jnp.where(hot, scaled, greedy)


def draw(keys: jax.Array, logits: jax.Array) -> jax.Array:
    """One category per row: int32 (N,) ~ softmax(logits), logits (N, S) of any float type, -inf allowed.

    keys: (N,) typed keys; row n depends on its own key alone, and takes two 32-bit words from it.
    """
    words = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)
    logits = logits.astype(jnp.float32)
    return pick(jnp.exp(logits - logits.max(-1, keepdims=True)), words)


def pick(mass: jax.Array, words: jax.Array) -> jax.Array:
    """One category per row: int32 (N,) in proportion to `mass` (N, S) float32 >= 0, by `words` (N, 2) uint32."""
    rows, states = mass.shape
    blocks = -(-states // BLOCK)
    mass = jnp.pad(mass, ((0, 0), (0, blocks * BLOCK - states))).reshape(rows, blocks, BLOCK)
    block = _pick(mass.sum(-1), words[:, 0])
    inside = jnp.take_along_axis(mass, block[:, None, None], 1)[:, 0]
    return block * BLOCK + _pick(inside, words[:, 1])
