"""The unigram law of a corpus, counted from its shards."""

import numpy as np

from dfm_jax.config import Config
from dfm_jax.data import Mixture, TokenStream, get_tokenizer
from dfm_jax.experiment import streams as corpora
from dfm_jax.runtime import files, processes

CHUNK = 2**22  # tokens counted at a time
FILE = "unigram.npy"  # counts (V,) int64, beside the shards they were counted from


def law(config: Config) -> np.ndarray:
    """The shares (V,) float64 of the tokens of `data.train`, which is prepared where it is not; counted once.

    That of a mixture is the mean of its corpora's, by their weights at the first step.
    """
    stream = corpora.get_training_stream(config, get_tokenizer(config.tokenizer.name))
    if not isinstance(stream, Mixture):
        return _law(stream)
    laws = [_law(part) for part in stream.streams]
    return np.average(laws, axis=0, weights=[float(weight) for weight in stream.weights])


def _law(stream: TokenStream) -> np.ndarray:
    size = stream.manifest.vocab_size
    file = stream.folder / f"{stream.fingerprint}-{FILE}"
    if file.exists():
        counts = files.load_array(file, (size,), "unigram")
    else:
        counts = count(stream, size)
        if processes.is_first():
            files.save_array(file, counts)
    return counts / counts.sum()


def count(stream: TokenStream, vocab_size: int) -> np.ndarray:
    """(V,) int64. The marks of records are not counted."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, stream.num_stored, CHUNK):
        tokens = stream.read(start, min(start + CHUNK, stream.num_stored))
        counts += np.bincount(tokens, minlength=vocab_size)[:vocab_size]
    return counts
