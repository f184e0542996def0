"""Benchmarks of the way from text to batches."""

import itertools
import pathlib
import tempfile
import time
from collections.abc import Iterator

from dfm_jax.benchmarking.results import Row, per_second, single
from dfm_jax.benchmarking.timing import measure
from dfm_jax.config import Config
from dfm_jax.data import Tokenizer, TokenStream, get_tokenizer, open_stream, prepare, train_batches
from dfm_jax.runtime.errors import WorldError

CORPUS = "pydocs"  # ships with Python: no network, and the same on every machine with the same interpreter
BATCHES = 20  # that one timed call of the loader reads


def available_tokenizer(config: Config) -> tuple[Tokenizer, str]:
    """The config's, or bytes with the reason where its tables are not here."""
    try:
        return get_tokenizer(config.tokenizer.name), ""
    except WorldError as error:
        return get_tokenizer("bytes"), f"bytes, because {error}"


def prepared(config: Config, folder: pathlib.Path) -> tuple[TokenStream, float, str]:
    """The corpus, prepared from nothing; the seconds that took; what there is to say of the tokenizer."""
    tokenizer, note = available_tokenizer(config)
    started = time.perf_counter()
    shards = prepare(CORPUS, "train", tokenizer, folder, num_workers=config.data.num_workers)
    seconds = time.perf_counter() - started
    return open_stream(shards, tokenizer.name), seconds, note or f"{CORPUS}, {tokenizer.name}"


def prepare_corpus(config: Config, vocab_size: int) -> Iterator[Row]:
    """Tokens per second from text to finished shards, start-up of the workers included."""
    with tempfile.TemporaryDirectory() as folder:
        stream, seconds, note = prepared(config, pathlib.Path(folder))
        note = f"{note}, {stream.num_tokens:,} tokens, {config.data.num_workers} workers"
        yield single("prepare", "tokens", stream.num_tokens / seconds, "tokens/s", note)


def loader(config: Config, vocab_size: int) -> Iterator[Row]:
    """Blocks per second from shards to batches in the host's memory."""
    with tempfile.TemporaryDirectory() as folder:
        stream, _, note = prepared(config, pathlib.Path(folder))
        length, batch_size = config.model.length, config.training.batch_size
        length = min(length, stream.num_tokens // 2)
        batches = train_batches(stream, length=length, batch_size=batch_size, seed=0)
        timing = measure(lambda: [batch.tokens.shape for batch in itertools.islice(batches, BATCHES)])
        note = f"{note}, blocks of {length}, batches of {batch_size}"
        yield per_second("loader", "blocks", BATCHES * batch_size, timing, "blocks/s", note)


PIPELINE = {"prepare": prepare_corpus, "loader": loader}
