"""A config's corpora as shards, before a run needs them; or a part of them, or their checksums read again."""

import pathlib

from dfm_jax.config import Config
from dfm_jax.data import get_tokenizer, is_complete, missing_units, summary, verify
from dfm_jax.experiment import streams
from dfm_jax.runtime.terminal import note


def prepare(config: Config, *, shard: tuple[int, int] | None = None, check: bool = False) -> dict[str, pathlib.Path]:
    """Tokenises `data.train`, `data.valid` and, with `eval.elbo`, `eval.corpora`, and prints what each holds.

    shard: (i, n), part i of n of the work; a folder is complete when all parts are done. check: reads every shard and
    compares its checksum with the manifest. Returns the folder of each corpus, by its name.

    Raises:
        UsageError: a corpus's name means nothing. WorldError: there is no such text, or a shard is damaged.
    """
    tokenizer = get_tokenizer(config.tokenizer.name)
    wanted = [("data.train", config.data.train), ("data.valid", config.data.valid)]
    if config.eval.elbo:
        wanted += [("eval.corpora", name) for name in streams.corpora(config) if name not in ("", config.data.valid)]
    found = {}
    for field, corpus in wanted:
        folder = streams.prepare_corpus(config, field, tokenizer, corpus, shard=shard)
        found[field if field != "eval.corpora" else corpus] = folder
        if not is_complete(folder):
            note(f"{corpus}: {len(missing_units(folder))} parts of {folder} are still to be done by the other shards")
            continue
        if check:
            for part in verify(folder):
                note(f"{folder / part.name}: {part.num_tokens:,} tokens, checksum right")
        print(summary(folder))
    return found
