"""Tokens that were made before: of files whose contents are known, in whatever prepared folder they are.

A corpus of which one file was changed, added or taken away has the others' tokens copied, which is a hundred times
as fast as making them; what is written is byte for byte what it would have been.
"""

import pathlib
from collections.abc import Iterable

from dfm_jax.data import encoding
from dfm_jax.data.journal import Journal, Place
from dfm_jax.data.shards import ShardFiles
from dfm_jax.runtime.errors import WorldError


class Known:
    """Looks for parts in all folders under `cache_dir`, once, when it is first asked."""

    def __init__(self, cache_dir: pathlib.Path, dtype: str, wanted: Iterable[str]):
        """wanted: the keys that will be asked for."""
        self._cache_dir, self._dtype = cache_dir, dtype
        self._wanted = {key for key in wanted if key}
        self._places: dict[str, Place] | None = None

    def find(self, keys: Iterable[str]) -> dict[str, Place]:
        if self._places is None:
            self._places = {}
            for path in sorted(self._cache_dir.glob("*/unit-?????.json")) if self._wanted else ():
                self._add(path)
        return {key: self._places[key] for key in keys if key in self._places}

    def _add(self, path: pathlib.Path) -> None:
        assert self._places is not None
        try:
            journal = Journal.read(path)
        except (OSError, WorldError):  # of another program or version, or gone
            return
        written = sum(shard.num_tokens for shard in journal.shards)
        shards = ShardFiles(path.parent, journal.shards, self._dtype)
        start = 0
        for part in journal.parts:
            stop = start + part.counts[encoding.TOKENS]
            if part.key in self._wanted and stop <= written:
                self._places.setdefault(part.key, Place(shards, start, part.counts))
            start = stop
