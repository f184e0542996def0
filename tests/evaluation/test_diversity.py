"""Diversity figures of samples whose values are known."""

import math

import numpy as np
import pytest

from dfm_jax.evaluation.diversity import diversity


def test_known_samples():
    constant, varied = np.zeros((1, 16), np.int32), np.arange(16, dtype=np.int32)[None]
    low, high = diversity(constant), diversity(varied)
    assert low.entropy_bits == 0.0
    assert low.distinct == {1: 1 / 16, 2: 1 / 15, 3: 1 / 14}
    assert low.repetition == pytest.approx(12 / 13)
    assert high.entropy_bits == pytest.approx(4.0)
    assert high.entropy_nats == pytest.approx(4.0 * math.log(2))
    assert high.distinct == {1: 1.0, 2: 1.0, 3: 1.0}
    assert high.repetition == 0.0
    both = diversity(np.concatenate([constant, varied]))
    assert both.entropy_bits == pytest.approx(2.0)


def test_short_and_missing_samples():
    assert diversity(np.asarray([[3]])).distinct == {1: 1.0, 2: 1.0, 3: 1.0}
    with pytest.raises(ValueError, match="samples of shape"):
        diversity(np.zeros((0, 4), np.int32))
