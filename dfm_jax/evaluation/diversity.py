"""How varied samples are. Repetitive samples have a low generative perplexity, so read these figures with it."""

import math
from typing import NamedTuple

import numpy as np

REPETITION_ORDER = 4


class Diversity(NamedTuple):
    """How varied a set of samples is. All figures are averages over samples.

    Attributes:
        entropy_bits: entropy of the sample's own token histogram, bits (the reference's unit).
        entropy_nats: the same in nats (the unit of MDLM and Duo).
        distinct: share of different n-grams among the sample's n-grams, for n = 1, 2, 3.
        repetition: 1 - the same share for n = 4 (seq-rep-4; Welleck et al. 2019, arXiv:1908.04319).
    """

    entropy_bits: float
    entropy_nats: float
    distinct: dict[int, float]
    repetition: float


def histogram_entropy(tokens: np.ndarray) -> float:
    """Entropy in bits of the histogram of one sample's tokens, an integer array of any shape."""
    _, counts = np.unique(tokens, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def distinct_share(tokens: np.ndarray, order: int) -> float:
    """The share of different n-grams among all n-grams of a sample (L,), n = order; 1 if it is shorter than n."""
    if len(tokens) < order:
        return 1.0
    grams = np.lib.stride_tricks.sliding_window_view(np.ascontiguousarray(tokens), order)
    return len(np.unique(grams, axis=0)) / len(grams)


def diversity(samples: np.ndarray) -> Diversity:
    """The diversity of samples (N, L) of token ids.

    Raises:
        ValueError: there is no sample, or it has no token.
    """
    if samples.ndim != 2 or samples.size == 0:
        raise ValueError(f"samples of shape {samples.shape}: expected (N, L) with N, L >= 1")
    bits = float(np.mean([histogram_entropy(sample) for sample in samples]))
    shares = {
        order: float(np.mean([distinct_share(sample, order) for sample in samples]))
        for order in (1, 2, 3, REPETITION_ORDER)
    }
    repetition = 1.0 - shares.pop(REPETITION_ORDER)
    return Diversity(bits, bits * math.log(2.0), shares, repetition)
