"""`--mode=prepare`: tokenises the config's corpora into shards, or a part of them; `--verify` reads them again."""

from dfm_jax.cli.command_line import Command
from dfm_jax.run.prepare import prepare
from dfm_jax.runtime import processes
from dfm_jax.runtime.errors import UsageError


def run(command: Command) -> int:
    if not processes.is_first():
        return 0  # one process uses all cores of its machine; --shard=i/n is for several machines
    given = command.operands
    prepare(command.config, shard=parse_shard(given["shard"]), check=bool(given["verify"]), show=given["show"] or 0)
    return 0


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """'2/8' as (2, 8): part 2 of the parts 0 to 7."""
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(f"shard = {text}: expected i/n with 0 <= i < n, such as 0/8")
    return int(index), int(count)
