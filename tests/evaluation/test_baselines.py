"""Baselines with exact answers, and what is kept of them."""

import math

import numpy as np
import pytest

from dfm_jax.data import get_tokenizer, open_stream, prepare
from dfm_jax.evaluation import baselines


def test_the_unigram_of_counts():
    nats = baselines.unigram(np.array([0, 0, 1]), np.array([0, 2]), 3)
    assert nats == pytest.approx(-(math.log(3 / 6) + math.log(1 / 6)) / 2)


def test_the_bigram_of_counts_and_its_probabilities_sum_to_one():
    counted = np.array([0, 1, 0, 2, 0, 1])
    law = np.array([4, 3, 2]) / 9
    # After 0: 1 twice and 2 once, two different ones; after 2: 0 once.
    expected = -(math.log(law[0]) + math.log((2 + 2 * law[1]) / (3 + 2)) + math.log(law[2] / (1 + 1)))
    assert baselines.bigram(counted, np.array([0, 1, 2]), 3) == pytest.approx(expected / 3)
    for first in range(3):
        total = sum(
            math.exp(-2 * baselines.bigram(counted, np.array([first, second]), 3)) / law[first] for second in range(3)
        )
        assert total == pytest.approx(1)


def test_of_texts(tmp_path):
    tokenizer = get_tokenizer("bytes")
    streams = []
    for name, text in (("train", "abcabc" * 500), ("valid", "abc" * 200)):
        (tmp_path / f"{name}.txt").write_text(text)
        streams.append(open_stream(prepare(str(tmp_path / f"{name}.txt"), "train", tokenizer, tmp_path / "cache")))
    found = baselines.baselines(streams[0], streams[1], tokenizer)
    assert 1.0 < found.unigram < 1.3 and found.bigram < 0.05 and found.gzip < 0.5
    assert found.tokens == 601 and found.bytes_per_token == pytest.approx(600 / 601)
    entry = found.entry()
    assert entry["gzip"]["bits_per_byte"] == pytest.approx(found.gzip)
    assert baselines.kept(tmp_path) == {}
    baselines.keep(tmp_path, {"a": found})
    baselines.keep(tmp_path, {"b": found})
    assert baselines.kept(tmp_path) == {"a": found, "b": found}
