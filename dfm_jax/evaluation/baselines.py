"""What a text costs without a network: counts of tokens and of pairs of them, and a general compressor.

A bound means something beside them: a network that does not know more than pairs of tokens is not above the bigram.
"""

import dataclasses
import json
import math
import pathlib
import zlib
from typing import Any

import numpy as np

from dfm_jax.data import Tokenizer, TokenStream
from dfm_jax.runtime import files

FILE = "baselines.json"  # in RUN/eval: {fingerprint of a text: baselines}
MOST_TRAINING, MOST_VALIDATION = 1 << 24, 1 << 22  # tokens that are looked at, from the beginning
_CHUNK = 1 << 20  # tokens read at a time


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Of a validation text.

    unigram, bigram: nats per token, by counts of the training text. gzip: bits per byte of the text compressed by
    itself (zlib, level 9). tokens, counted: of the two texts, that were looked at. bytes_per_token: of the validation
    text, to turn one unit into the other; 0 for tokens that stand for no text.
    """

    unigram: float
    bigram: float
    gzip: float
    tokens: int
    counted: int
    bytes_per_token: float

    def bits_per_byte(self, nats_per_token: float) -> float:
        return nats_per_token / math.log(2) / self.bytes_per_token if self.bytes_per_token else math.nan

    def entry(self) -> dict[str, Any]:
        """As a report holds it: {name: {"nats_per_token", "bits_per_byte"}}, the compressor in bytes alone."""
        named = {"unigram": self.unigram, "bigram": self.bigram}
        if self.bytes_per_token:  # tokens without a text have none
            named["gzip"] = self.gzip * math.log(2) * self.bytes_per_token
        return {
            name: {"nats_per_token": nats, "bits_per_byte": self.bits_per_byte(nats)} for name, nats in named.items()
        }


def baselines(train: TokenStream, valid: TokenStream, tokenizer: Tokenizer) -> Baselines:
    """Counts `train` and measures `valid`, each up to a size that takes seconds."""
    counted, measured = _tokens(train, MOST_TRAINING), _tokens(valid, MOST_VALIDATION)
    size = tokenizer.vocab_size
    text = tokenizer.decode_bytes(measured.tolist())
    return Baselines(
        unigram=unigram(counted, measured, size),
        bigram=bigram(counted, measured, size),
        gzip=8 * len(zlib.compress(text, 9)) / max(len(text), 1),
        tokens=len(measured),
        counted=len(counted),
        bytes_per_token=len(text) / len(measured),
    )


def unigram(counted: np.ndarray, measured: np.ndarray, size: int) -> float:
    """Mean -log p of the tokens `measured` (n,), p(a) = (count of a + 1) / (tokens + size): nats per token."""
    return float(-np.log(_law(counted, size))[measured].mean())


def bigram(counted: np.ndarray, measured: np.ndarray, size: int) -> float:
    """The same of p(b | a) = (count of ab + k p(b)) / (count of a + k), p(b) of `unigram`, k the number of different
    tokens that follow a (1 where none does): Witten and Bell's estimate. The first token costs as by `unigram`."""
    law = _law(counted, size)
    pairs, counts = np.unique(counted[:-1] * size + counted[1:], return_counts=True)
    followed = np.bincount(pairs // size, weights=counts, minlength=size)
    kinds = np.maximum(np.bincount(pairs // size, minlength=size), 1)
    asked = measured[:-1] * size + measured[1:]
    if len(pairs):
        at = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
        seen = np.where(pairs[at] == asked, counts[at], 0)
    else:
        seen = np.zeros(len(asked))
    before, after = measured[:-1], measured[1:]
    p = (seen + kinds[before] * law[after]) / (followed[before] + kinds[before])
    return float(-(np.log(law[measured[0]]) + np.log(p).sum()) / len(measured))


def _law(counted: np.ndarray, size: int) -> np.ndarray:
    return (np.bincount(counted, minlength=size) + 1) / (len(counted) + size)


def _tokens(stream: TokenStream, most: int) -> np.ndarray:
    """The first tokens of a stream, (n,) int64."""
    stop = min(stream.num_tokens, most)
    parts = [stream.read(start, min(start + _CHUNK, stop)).astype(np.int64) for start in range(0, stop, _CHUNK)]
    return np.concatenate(parts)


def keep(folder: pathlib.Path, found: dict[str, Baselines]) -> None:
    """Writes those of several texts, by fingerprint, into `folder`/eval, beside those that are there."""
    known = {name: dataclasses.asdict(value) for name, value in (kept(folder) | found).items()}
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    files.write_json_atomically(folder / "eval" / FILE, known)


def kept(folder: pathlib.Path) -> dict[str, Baselines]:
    """What `keep` has written; empty where nothing can be read."""
    try:
        given = json.loads((folder / "eval" / FILE).read_text(encoding="utf-8"))
        return {name: Baselines(**value) for name, value in given.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
