"""`--mode=prepare`: tokenises the config's corpora into shards, or a part of them; `--verify` reads them again."""

from dfm_jax.command_line import Command
from dfm_jax.data import get_tokenizer, is_complete, missing_units, summary, verify
from dfm_jax.experiment import streams as corpora
from dfm_jax.runtime import processes
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.terminal import note


def run(command: Command) -> int:
    if not processes.is_first():
        return 0  # one process uses all cores of its machine; --shard=i/n is for several machines
    config = command.config
    shard = parse_shard(command.operands["shard"])
    tokenizer = get_tokenizer(config.tokenizer.name)
    wanted = [("data.train", config.data.train), ("data.valid", config.data.valid)]
    if config.eval.elbo:
        wanted += [("eval.corpora", corpus) for corpus in config.eval.corpora if corpus != config.data.valid]
    for field, corpus in wanted:
        folder = corpora.prepare_corpus(config, field, tokenizer, corpus, shard=shard)
        if not is_complete(folder):
            note(f"{corpus}: {len(missing_units(folder))} parts of {folder} are still to be done by the other shards")
            continue
        if command.operands["verify"]:
            for part in verify(folder):
                note(f"{folder / part.name}: {part.num_tokens:,} tokens, checksum right")
        print(summary(folder))
    return 0


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """'2/8' as (2, 8): part 2 of the parts 0 to 7."""
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(f"shard={text}: accepted is i/n with 0 <= i < n, such as 0/8")
    return int(index), int(count)
