"""The token streams that a config names, prepared on first use."""

import pathlib
from typing import Any

import jax

from dfm_jax.config import Config
from dfm_jax.data import Printer, Tokenizer, TokenStream, open_stream, prepare
from dfm_jax.data.packing import packed
from dfm_jax.runtime import processes
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.terminal import note


def get_stream(config: Config, field: str, tokenizer: Tokenizer, corpus: str = "") -> TokenStream:
    """The corpus of a config field ('data.train', 'data.valid', 'eval.corpora'), or `corpus` in that field's place.

    Process 0 prepares what is not prepared; the others wait for it and then open the same shards. Raises
    UsageError or WorldError, on every process, where there is no such text or not one block of model.length.
    """
    name = corpus or config[field]

    def prepared() -> pathlib.Path:
        return prepare_corpus(config, field, tokenizer, corpus)

    def opened() -> TokenStream:
        stream = packed(open_stream(folder or prepared(), tokenizer.name), config.data.packing, tokenizer)
        if not stream.num_blocks(config.model.length):
            raise WorldError(
                f"config.{field} = {name}: {stream.num_tokens:,} tokens, not one block of "
                f"config.model.length = {config.model.length}: expected a longer text or a smaller length"
            )
        return stream

    folder = processes.shared(lambda: prepared() if processes.is_first() else None)
    stream = processes.shared(opened)
    processes.agree({f"config.{field}: fingerprint of the tokens": stream.fingerprint})
    return stream


def prepare_corpus(config: Config, field: str, tokenizer: Tokenizer, corpus: str = "", **options: Any) -> pathlib.Path:
    """Prepares the corpus of a field (see `get_stream`) and returns the folder of its shards."""
    training = field == "data.train"
    return prepare(
        corpus or config[field],
        "train" if training else "valid",
        tokenizer,
        config.data.cache_dir,
        num_workers=config.data.num_workers,
        on_error=config.data.on_error,
        max_error_share=config.data.max_error_share,
        # The published run packed its validation text alone in its own way. Other forms are cut from the same shards.
        packing="continuous" if training or config.data.packing != "reference" else "reference",
        progress=Printer() if jax.process_index() == 0 else None,
        note=note if jax.process_index() == 0 else None,
        field=f"config.{field}",
        **options,
    )
