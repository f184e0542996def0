"""In which order masks are revealed, and how many at once (mathematics.md E.5).

A position's score says how sure the model is of it; the surest come first. Scores speak of the posterior before
temperature and top-p.
"""

import jax
import jax.numpy as jnp

from dfm_jax.flow.samplers.denoiser import Answer, Needs

# Scores that are closer than this are ties, and so are sums of entropies and the bound.
TIE = 1e-6
MOST_NOISE = 1e9  # of Gumbel noise on a score; scores have 24 bits
ORDERS = {
    "confidence": Needs.TOP_TWO,  # the largest probability: MaskGIT, LLaDA
    "margin": Needs.TOP_TWO,  # the largest less the second largest
    "entropy": Needs.ENTROPY,  # minus the entropy
    "random": Needs.NOTHING,
    "drawn": Needs.LOG_PROB,  # the probability of the token that was drawn; not exact even one at a time
}


def score_of(order: str, answer: Answer) -> jax.Array:
    """The scores (B, L) float32 of an order other than 'random', larger = surer."""
    if order == "drawn":
        assert answer.log_prob is not None
        return jnp.exp(answer.log_prob)
    if order == "entropy":
        assert answer.entropy is not None
        return -answer.entropy
    assert answer.top_two is not None
    return answer.top_two[..., 0] - (answer.top_two[..., 1] if order == "margin" else 0.0)


def ranks(score: jax.Array, candidates: jax.Array, block: jax.Array, tie: float) -> jax.Array:
    """The places (B, L) int32 of the positions in the order by block, then by score; 0 comes first.

    score: (B, L) float32. candidates: (B, L) bool; the others come last. block: (B, L) int32. Neighbours in the order
    whose scores differ by at most `tie` are ties: the lower position comes first.
    """
    position = jax.lax.broadcasted_iota(jnp.int32, score.shape, 1)
    last = jnp.int32(score.shape[1])  # after every block
    groups = jnp.where(candidates, block, last)
    surest_first = jnp.where(candidates, -score, 0.0)
    groups, surest_first, position = jax.lax.sort((groups, surest_first, position), num_keys=3)
    if tie > 0:
        apart = (jnp.diff(groups) != 0) | (jnp.diff(surest_first) > tie)
        tied = jnp.pad(jnp.cumsum(apart.astype(jnp.int32), -1), ((0, 0), (1, 0)))
        _, position = jax.lax.sort((tied, position), num_keys=2)
    return jnp.argsort(position, -1).astype(jnp.int32)


def within_bound(rank: jax.Array, candidates: jax.Array, entropy: jax.Array, bound: float) -> jax.Array:
    """How many candidates come first, (B,) int32, so that their entropies less the largest sum to at most `bound` nats.

    rank, candidates, entropy: (B, L). It is the longest such prefix of the order, and at least 1. The joint law of the
    positions then differs from the product of their laws by at most `bound` in KL (2505.24857).
    """
    entropy = jnp.where(candidates, entropy, 0.0)
    in_order = jnp.take_along_axis(entropy, jnp.argsort(rank, -1), -1)
    excess = jnp.cumsum(in_order, -1) - jax.lax.cummax(in_order, axis=1)
    return jnp.minimum((excess <= bound + TIE).sum(-1), candidates.sum(-1)).astype(jnp.int32)
