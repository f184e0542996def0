"""The token streams that a config names, prepared on first use."""

import os
import pathlib
from typing import Any

import jax

from dfm_jax.config import Config
from dfm_jax.data import Mixture, Printer, RecordStream, Tokenizer, TokenStream, open_stream, prepare
from dfm_jax.data.corpora import names_records
from dfm_jax.data.packing import PACKED, packed
from dfm_jax.data.views import weights
from dfm_jax.runtime import processes
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.terminal import note

OWN = "data.valid"  # in eval.corpora: the run's own validation text


def get_stream(
    config: Config, field: str, tokenizer: Tokenizer, corpus: str = "", *, of_any_length: bool = False
) -> TokenStream:
    """The corpus of a config field ('data.train', 'data.valid', 'eval.corpora'), or `corpus` in that field's place.

    An empty name is the run's own validation text: `data.valid`, or where that is empty, what `data.train` holds out.

    Process 0 prepares what is not prepared; the others wait for it and then open the same shards. Raises
    UsageError or WorldError, on every process, where there is no such text or not one block of model.length, which
    does not matter with `of_any_length`.
    """
    name = source(config, field, corpus)[0]

    def prepared() -> pathlib.Path:
        return prepare_corpus(config, field, tokenizer, corpus)

    def opened() -> TokenStream:
        stream = open_stream(folder or prepared(), tokenizer.name, config.data.long_records)
        if not isinstance(stream, RecordStream):
            stream = packed(stream, config.data.packing, tokenizer)
        elif config.data.packing in PACKED:
            raise UsageError(f"config.data.packing = {config.data.packing}: expected continuous with records ({name})")
        try:
            enough = of_any_length or stream.num_blocks(config.model.length)
        except WorldError as error:  # of records, not one of which fits
            raise WorldError(f"config.{field} = {error}") from error
        if not enough:
            raise WorldError(
                f"config.{field} = {name}: {stream.num_tokens:,} tokens{_which(stream)}, not one block of "
                f"config.model.length = {config.model.length}: expected a longer text or a smaller length"
            )
        return stream

    folder = processes.shared(lambda: prepared() if processes.is_first() else None)
    stream = processes.shared(opened)
    processes.agree({f"config.{field}: fingerprint of the tokens": stream.fingerprint})
    described = isinstance(stream, RecordStream) and not of_any_length
    line = stream.blocks(config.model.length).described() if described else ""
    if line and processes.is_first():
        note(f"config.{field} = {name}: {line}")
    return stream


def get_training_stream(config: Config, tokenizer: Tokenizer) -> TokenStream | Mixture:
    """What `data.train` names, a corpus or a mixture of several. Raises as `get_stream`."""
    parts = weights.mixture(config.data.train, "config.data.train")
    if not parts:
        return get_stream(config, "data.train", tokenizer)
    return Mixture(
        names=tuple(part.corpus for part in parts),
        streams=tuple(get_stream(config, "data.train", tokenizer, part.corpus) for part in parts),
        weights=tuple(part.weight for part in parts),
        changes=weights.changes(config.data.reweight, len(parts), "config.data.reweight"),
    )


def count_tokens(config: Config, field: str, tokenizer: Tokenizer) -> int:
    """The tokens of the corpus of a field, of a mixture those of all its corpora. Raises as `get_stream`."""
    parts = weights.mixture(config.data.train, "config.data.train") if field == "data.train" else ()
    names = [part.corpus for part in parts] or [""]
    return sum(get_stream(config, field, tokenizer, name, of_any_length=True).num_tokens for name in names)


def trains_on_records(config: Config) -> bool:
    """Whether `data.train` is said to be records, or one corpus of a mixture is. Nothing is read."""
    spec = config.data.train
    parts = weights.mixture(spec, "config.data.train")
    cache = pathlib.Path(os.path.expanduser(config.data.cache_dir))
    return any(names_records(corpus, cache) for corpus in ([part.corpus for part in parts] or [spec]))


def prepare_corpus(config: Config, field: str, tokenizer: Tokenizer, corpus: str = "", **options: Any) -> pathlib.Path:
    """Prepares the corpus of a field (see `get_stream`) and returns the folder of its shards."""
    name, held_out = source(config, field, corpus)
    training = field == "data.train"
    if weights.mixture(name, f"config.{field}"):
        raise UsageError(f"config.{field} = {name}: expected one corpus; data.train alone mixes several")
    return prepare(
        name,
        "train" if training else "valid",
        tokenizer,
        config.data.cache_dir,
        num_workers=config.data.num_workers,
        on_error=config.data.on_error,
        max_error_share=config.data.max_error_share,
        special=config.data.special,
        # The published run packed its validation text alone in its own way. Other forms are cut from the same shards.
        packing="continuous" if training or config.data.packing != "reference" else "reference",
        progress=Printer() if jax.process_index() == 0 else None,
        note=note if jax.process_index() == 0 else None,
        field=f"config.{'data.train' if held_out else field}",
        held_out=held_out,
        **options,
    )


def source(config: Config, field: str, corpus: str = "") -> tuple[str, float]:
    """The corpus that a field means, and the share of its documents that is held out of it (0: none)."""
    if field != "data.train" and (corpus or config.data.valid):
        return corpus or config.data.valid, 0.0
    return corpus or config.data.train, 0.0 if config.data.valid else config.data.held_out


def corpora(config: Config) -> tuple[str, ...]:
    """The texts of `eval.corpora`, as `get_stream` takes them: "" for "data.valid", the run's own validation text."""
    return tuple("" if name == OWN else name for name in config.eval.corpora)


def label(config: Config, corpus: str) -> str:
    """What a report calls a text of `corpora`."""
    return corpus or config.data.valid or f"{config.data.train} (held out)"


def _which(stream: TokenStream) -> str:
    return " that are held out" if stream.manifest.split.startswith("held-out") else ""
