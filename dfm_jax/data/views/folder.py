"""Opens a prepared folder, and verifies all of it."""

import os
import pathlib
from collections.abc import Iterator

from dfm_jax.data.manifest import Manifest, Shard
from dfm_jax.data.shards import TokenStream, check_size, verify_shard
from dfm_jax.data.sources import remote
from dfm_jax.data.views.records import INDEX_DTYPE, RecordStream
from dfm_jax.runtime.errors import WorldError


def open_stream(path: str | os.PathLike, tokenizer: str | None = None, long_records: str = "cut") -> TokenStream:
    """Opens a prepared folder and checks the size of every shard (checksums: `verify`).

    tokenizer: the name that the tokens must have been made with, if any is required. long_records: what happens to
    records that are longer than a row, 'cut' or 'skip'.
    Raises WorldError on a missing or unreadable manifest, a missing, truncated or longer shard, another tokenizer.
    """
    folder = pathlib.Path(path)
    manifest = Manifest.load(folder)
    if tokenizer is not None and manifest.tokenizer != tokenizer:
        raise WorldError(
            f"{folder}: made with tokenizer.name = {manifest.tokenizer}: expected {tokenizer}, as the run's config says"
        )
    fetch = remote.fetcher(folder)
    for shard, dtype in _all_shards(manifest):
        if fetch is None or (folder / shard.name).exists():
            check_size(folder, shard, dtype)
    if manifest.records:
        return RecordStream(folder, manifest, fetch, long_records)
    return TokenStream(folder, manifest, fetch)


def verify(path: str | os.PathLike) -> Iterator[Shard]:
    """Reads every shard whole and compares header and checksum with the manifest; yields each that is right.

    Raises WorldError at the first one that is not.
    """
    folder = pathlib.Path(path)
    stream = open_stream(folder)
    fetch = remote.fetcher(folder)
    for shard, dtype in _all_shards(stream.manifest):
        if fetch is not None:
            fetch(shard.name)
        verify_shard(folder, shard, dtype)
        yield shard


def _all_shards(manifest: Manifest) -> list[tuple[Shard, str]]:
    """Every shard with its dtype, those of the records' places last."""
    return [(shard, manifest.dtype) for shard in manifest.shards] + [(s, INDEX_DTYPE) for s in manifest.records]
