"""A corpus to shards: tokenised on all cores, packed continuously, resumable, split over machines.

The corpus's units are prepared one by one. A unit's journal (`unit-00000.json`) lists its finished shards and the
place in its rows where the last of them ends; it is replaced after every shard. A run that was killed goes on from the
journal, encodes the row that a shard's end cuts once more, and so writes the bytes that it would have written anyway.
When all units are done, by whichever process, the manifest is written, and the folder is complete.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

from dfm_jax.data.corpora import Corpus, resolve
from dfm_jax.data.encoding import Encoder
from dfm_jax.data.journal import Journal, UnitWriter
from dfm_jax.data.progress import Meter, Progress
from dfm_jax.data.rows import Unit
from dfm_jax.data.shards import FORMAT, MANIFEST, Manifest, check_size, open_stream
from dfm_jax.data.tokenizers import Tokenizer, get_tokenizer
from dfm_jax.errors import UsageError, WorldError
from dfm_jax.files import write_json_atomically

SHARD_BYTES = 1 << 28
PACKINGS = ("continuous", "reference")
CODE_VERSION = "1"  # of the rules that turn a corpus into tokens: a new one prepares again


def prepare(
    corpus: str,
    split: str,
    tokenizer: Tokenizer | str,
    cache_dir: str | os.PathLike,
    *,
    num_workers: int = 0,
    packing: str = "continuous",
    shard: tuple[int, int] | None = None,
    progress: Callable[[Progress], None] | None = None,
    field: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> pathlib.Path:
    """Makes sure that one split of a corpus is in shards; returns their folder, under cache_dir.

    corpus: see corpora.py, or a folder that was prepared already. split: 'train' | 'valid'. num_workers: threads that
    encode, 0 for one per core. packing: 'continuous', or 'reference', which cuts blocks as the published run did.
    shard: (i, n), do only the i-th of n parts of the work (0 <= i < n); the folder is complete when all parts are,
    which `is_complete` tells. Parts are runs of units (a file of the hub, about 256 MB of local files): more parts
    than units leave some with nothing to do. progress: called about twice a second. field: the config field to name
    in errors.

    Does nothing when the folder is complete. Raises UsageError on a spec without meaning, WorldError when text cannot
    be read or shards cannot be written; what was written stays and the next call goes on from there.
    """
    field = field or f"data.{split}"
    tokenizer = get_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    if packing not in PACKINGS:
        raise UsageError(f"data.packing={packing}: accepted {', '.join(PACKINGS)}")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise UsageError(f"shard={shard[0]}/{shard[1]}: accepted i/n with 0 <= i < n")
    given = pathlib.Path(corpus).expanduser()
    if (given / MANIFEST).is_file():
        made = open_stream(given, tokenizer.name).manifest.packing
        if made != packing:
            raise WorldError(f"{given}: made with data.packing={made}: accepted {packing}, as this run's config says")
        return given
    resolved = resolve(corpus, split, field)
    folder = pathlib.Path(cache_dir).expanduser() / _folder_name(resolved, split, tokenizer.name, packing, shard_bytes)
    if is_complete(folder):
        open_stream(folder, tokenizer.name)
        return folder
    with _disk_errors(cache_dir):
        folder.mkdir(parents=True, exist_ok=True)
        units = resolved.units()
        _agree_on_plan(folder, units)
        encoder = Encoder(tokenizer, resolved.detokenize, resolved.keep_empty, num_workers)
        writer = UnitWriter(folder, encoder, shard_bytes, keep_lengths=packing == "reference")
        part = range(len(units)) if shard is None else _part(len(units), *shard)
        _write(writer, units, part, progress)
        _finish(folder, len(units), encoder, packing, resolved.name, split, field)
    return folder


def is_complete(folder: str | os.PathLike) -> bool:
    """Whether every part of a prepared folder is there."""
    return (pathlib.Path(folder) / MANIFEST).is_file()


def missing_units(folder: str | os.PathLike) -> list[str]:
    """The units of an incomplete folder that no part has finished yet, by name."""
    folder = pathlib.Path(folder)
    names = json.loads((folder / "plan.json").read_text())
    return [name for i, name in enumerate(names) if not Journal.load(folder, i).done]


def _part(count: int, index: int, parts: int) -> range:
    return range(count * index // parts, count * (index + 1) // parts)


def _folder_name(corpus: Corpus, split: str, tokenizer: str, packing: str, shard_bytes: int) -> str:
    key = [FORMAT, CODE_VERSION, corpus.identity, split, tokenizer, packing, shard_bytes]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]
    name = re.sub(r"[^\w.-]+", "_", re.sub(r"[^@]*/", "", corpus.name)).strip("_.")[:60]
    return f"{name}-{split}-{tokenizer}-{digest}"


@contextlib.contextmanager
def _disk_errors(cache_dir: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorldError(
            f"data.cache_dir={cache_dir}: {error.strerror or error}: accepted a folder that can be written, "
            "on a disk with room; what is prepared stays, run again to continue"
        ) from error


def _agree_on_plan(folder: pathlib.Path, units: Sequence[Unit]) -> None:
    names = [unit.name for unit in units]
    plan = folder / "plan.json"
    if not plan.exists():
        write_json_atomically(plan, names, durable=True)
    elif json.loads(plan.read_text()) != names:
        raise WorldError(
            f"{folder}: the corpus's files are no longer those that its parts were planned with: "
            "accepted the same files for all parts; delete this folder to begin again"
        )


def _write(writer: UnitWriter, units: Sequence[Unit], part: range, progress: Callable[[Progress], None] | None) -> None:
    meter = Meter(sum(units[i].size for i in part), progress)
    for i in part:
        writer.write(i, units[i], meter)
    meter.close()


def _finish(
    folder: pathlib.Path, num_units: int, encoder: Encoder, packing: str, corpus: str, split: str, field: str
) -> None:
    """Writes the manifest if all units are done; leaves the folder incomplete if other parts have yet to come."""
    journals = [Journal.load(folder, i) for i in range(num_units)]
    if not all(journal.done for journal in journals):
        return
    shards = tuple(shard for journal in journals for shard in journal.shards)
    if not shards:
        skipped = sum(journal.skipped for journal in journals)
        raise WorldError(f"{field}={corpus}: no text in it ({skipped} rows are empty): accepted some text")
    for shard in shards:
        check_size(folder, shard, encoder.dtype)
    tokenizer = encoder.tokenizer
    segments = reference_segments([n for j in journals for n in j.lengths]) if packing == "reference" else ()
    Manifest(
        corpus=corpus,
        split=split,
        tokenizer=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        dtype=encoder.dtype,
        packing=packing,
        num_documents=sum(journal.documents for journal in journals),
        num_tokens=sum(shard.num_tokens for shard in shards),
        num_bytes=sum(journal.num_bytes for journal in journals),
        repaired=sum(journal.repaired for journal in journals),
        skipped=sum(journal.skipped for journal in journals),
        shards=shards,
        segments=segments,
        code_version=CODE_VERSION,
    ).save(folder)


def reference_segments(lengths: Sequence[int], workers: int = 8, rows: int = 1000) -> tuple[int, ...]:
    """Tokens of each run of documents that the published run packed by itself.

    It gave every one of 8 workers a contiguous share of the documents, the first shares one longer where 8 does not
    divide their number, and dropped a remainder after each 1000 documents of a share.
    """
    share, longer = divmod(len(lengths), workers)
    segments, start = [], 0
    for worker in range(workers):
        stop = start + share + (worker < longer)
        segments += [sum(lengths[i : min(i + rows, stop)]) for i in range(start, stop, rows)]
        start = stop
    return tuple(segments)


def summary(folder: str | os.PathLike, lines: int = 3) -> str:
    """What a prepared folder holds, and the text that its first tokens stand for."""
    stream = open_stream(folder)
    m = stream.manifest
    head = stream.read(0, min(stream.num_tokens, 200 * lines))
    text = [line for line in get_tokenizer(m.tokenizer).decode(head).splitlines() if line.strip()][:lines]
    counts = [
        f"{m.corpus} ({m.split}): {m.num_documents:,} documents, {m.num_tokens:,} tokens of {m.tokenizer}, "
        f"{m.num_bytes:,} bytes of text ({m.num_bytes / m.num_tokens:.2f} a token)",
        f"{len(m.shards)} shards in {os.fspath(folder)}, fingerprint {m.fingerprint}",
    ]
    if m.skipped:
        counts.append(f"skipped {m.skipped:,} rows without text")
    if m.repaired:
        counts.append(f"replaced invalid UTF-8 by U+FFFD in {m.repaired:,} documents")
    return "\n".join(counts + ["it begins:"] + [f"  | {line[:100]}" for line in text])
