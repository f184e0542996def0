"""Which folder of shards a corpus has, or gets."""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from dfm_jax.data.corpora import OPTIONS, local_path, refuse_options, split_spec
from dfm_jax.data.manifest import FORMAT, MANIFEST, Manifest
from dfm_jax.data.sources import remote
from dfm_jax.data.tokenizers import Tokenizer
from dfm_jax.data.views.folder import open_stream
from dfm_jax.runtime.errors import WorldError

CODE_VERSION = "1"  # of the rules that turn a corpus into tokens: a new one prepares again


def is_complete(folder: str | os.PathLike) -> bool:
    """Whether every part of a prepared folder is there."""
    return os.path.isfile(os.path.join(folder, MANIFEST))


def given(
    corpus: str, field: str, tokenizer: Tokenizer, packing: str, special: str, cache: pathlib.Path
) -> pathlib.Path | None:
    """The prepared folder that a corpus's spec names by its path or URL; None for any other corpus.

    cache: for the copy of one in a store.
    """
    where, options = split_spec(corpus, field)
    folder = pathlib.Path(os.path.expanduser(where))
    if remote.is_url(where):
        folder = remote.prepared(where, f"{field} = {corpus}", cache) or folder
    if not is_complete(folder):
        return None
    refuse_options(corpus, field, options, OPTIONS, "a folder that is prepared already")
    manifest = open_stream(folder, tokenizer.name).manifest
    for name, made, wanted in (("packing", manifest.packing, packing), ("special", manifest.special, special)):
        if made != wanted:
            raise WorldError(f"{folder}: made with data.{name} = {made}: expected {wanted}, as this run's config says")
    return folder


def opened(folder: pathlib.Path, tokenizer: str, on_error: str, note: Callable[[str], None]) -> pathlib.Path:
    """A complete folder, its faults told; WorldError where it has some and none are wanted."""
    manifest = open_stream(folder, tokenizer).manifest
    left_out = faults(manifest.bad, manifest.lost)
    if left_out and on_error == "stop":
        raise WorldError(
            f"{folder}: made without {left_out}, the first: {manifest.places[0]}: expected data.on_error=skip, or the "
            "files mended"
        )
    if left_out:
        note(f"{manifest.corpus}: left out: {left_out}: {'; '.join(manifest.places)}")
    return folder


def faults(bad: int, lost: int) -> str:
    """'3 bad rows and 1 file (from the fault on)'; '' where there are none."""
    rows = f"{bad:,} bad rows" if bad else ""
    files = f"{lost:,} files, from their first fault on" if lost else ""
    return " and ".join(filter(None, (rows, files)))


def kept(
    cache: pathlib.Path, corpus: str, split: str, tokenizer: str, packing: str, special: str
) -> pathlib.Path | None:
    """The newest complete folder that was made of what `corpus` names, whatever that held then."""
    found = []
    for file in cache.glob(f"*/{MANIFEST}"):
        try:
            manifest = Manifest.load(file.parent)
        except WorldError:
            continue
        same = manifest.corpus == corpus or (
            manifest.source and _meaning(corpus) == _meaning(manifest.corpus, manifest)
        )
        made = manifest.split, manifest.tokenizer, manifest.packing, manifest.special
        if same and made == (split, tokenizer, packing, special):
            found.append((file.stat().st_mtime_ns, file.parent))
    return max(found)[1] if found else None


def _meaning(corpus: str, manifest: Manifest | None = None) -> tuple[Any, ...]:
    """The path of a corpus of local text, the name whose rules it has, and its options."""
    path = local_path(corpus)
    source = manifest.source if manifest else path and os.path.abspath(path)
    return source, corpus.partition("@")[0] if "@" in corpus else "", split_spec(corpus, "")[1]


def commit_of(folder: pathlib.Path) -> str:
    return Manifest.load(folder).commit or "unknown"


def digest(identity: Mapping[str, Any], split: str, tokenizer: str, packing: str, shard_bytes: int) -> str:
    key = [FORMAT, CODE_VERSION, identity, split, tokenizer, packing, shard_bytes]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]


def folder_name(corpus: str, digest: str, split: str, tokenizer: str) -> str:
    name = re.sub(r"[^\w.-]+", "_", re.sub(r"[^@]*/", "", corpus)).strip("_.")[:60]
    return f"{name}-{split}-{tokenizer}-{digest}"


def find(cache: pathlib.Path, corpus: str, digest: str, split: str, tokenizer: str) -> pathlib.Path:
    """The folder of a digest, whatever name its corpus had when it was begun, a complete one first; else a new one."""
    there = cache.glob(f"*-{digest}")
    new = cache / folder_name(corpus, digest, split, tokenizer)
    return min(there, key=lambda folder: (not is_complete(folder), folder.name), default=new)
