"""A config's corpora as shards, before a run needs them; or a part of them, or their checksums read again."""

import pathlib
from collections.abc import Mapping

from dfm_jax.config import Config
from dfm_jax.data import Manifest, get_tokenizer, is_complete, missing_units, summary, train_batches, verify
from dfm_jax.data.views import weights
from dfm_jax.evaluation.report.markdown import table
from dfm_jax.experiment import streams
from dfm_jax.run import devices
from dfm_jax.run.begin import found_sizes
from dfm_jax.runtime.terminal import note


def prepare(
    config: Config, *, shard: tuple[int, int] | None = None, check: bool = False, show: int = 0
) -> dict[str, pathlib.Path]:
    """Tokenises `data.train`, `data.valid` and, with `eval.elbo`, `eval.corpora`, and prints what each holds.

    shard: (i, n), part i of n of the work; a folder is complete when all parts are done. check: reads every shard and
    compares its checksum with the manifest. show: blocks of `data.train` that are printed. Returns the folders of
    data.train (of a mixture by the names of its corpora), data.valid, and each of eval.corpora by its name.

    Raises:
        UsageError: a corpus's name means nothing. WorldError: there is no such text, or a shard is damaged.
    """
    tokenizer = get_tokenizer(config.tokenizer.name)
    mixture = weights.mixture(config.data.train, "config.data.train")
    wanted = [("data.train", part.corpus) for part in mixture] or [("data.train", config.data.train)]
    wanted += [("data.valid", config.data.valid)]
    if config.eval.elbo:
        wanted += [("eval.corpora", name) for name in streams.corpora(config) if name not in ("", config.data.valid)]
    found, complete = {}, {}
    for field, corpus in wanted:
        folder = streams.prepare_corpus(config, field, tokenizer, corpus, shard=shard)
        name = corpus if field == "eval.corpora" or (mixture and field == "data.train") else field
        found[name] = folder
        if not is_complete(folder):
            note(f"{corpus}: {len(missing_units(folder))} parts of {folder} are still to be done by the other shards")
            continue
        complete[name] = folder
        if check:
            for part in verify(folder):
                note(f"{folder / part.name}: {part.num_tokens:,} tokens, checksum right")
        print(summary(folder, tokenizer=tokenizer))
    if complete:
        print(f"\n{contents(complete)}")
    if show and len(complete) == len(found):
        show_blocks(config, show)
    return found


def contents(folders: Mapping[str, pathlib.Path]) -> str:
    """What prepared folders hold, a Markdown table with a row for each."""
    rows = []
    for name, folder in folders.items():
        made = Manifest.load(folder)
        left_out = [f"{made.skipped:,} rows without text"] if made.skipped else []
        left_out += [f"{made.bad:,} bad rows"] if made.bad else []
        left_out += [f"{made.lost:,} files that break off"] if made.lost else []
        left_out += list(made.left_out)
        rows.append(
            [
                name,
                f"{made.num_documents:,}",
                f"{made.num_tokens:,}",
                f"{made.num_bytes / max(made.num_tokens, 1):.2f}",
                f"{made.repaired:,}",
                "; ".join(left_out) or "nothing",
            ]
        )
    return table(["text", "documents", "tokens", "bytes a token", "repaired documents", "left out"], rows)


def show_blocks(config: Config, number: int) -> None:
    """Prints the first blocks of `data.train` that training will draw."""
    config, _ = found_sizes(config, devices.any_mesh(config))
    tokenizer = get_tokenizer(config.tokenizer.name)
    stream = streams.get_training_stream(config, tokenizer)
    length = config.model.length
    blocks = next(train_batches(stream, length=length, batch_size=number, seed=config.training.seed)).tokens
    for i, block in enumerate(blocks, 1):
        print(f"\n=== block {i} of {number}, {length} tokens ===\n{tokenizer.decode(block.tolist())}")
