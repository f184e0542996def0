"""A corpus to shards: tokenised on all cores, packed continuously, resumable, split over machines.

The corpus's units are prepared one by one. A unit's journal (`unit-00000.json`) lists its finished shards and the
place in its rows where the last of them ends; it is replaced after every shard. A run that was killed goes on from the
journal, encodes the row that a shard's end cuts once more, and so writes the bytes that it would have written anyway.
When all units are done, by whichever process, the manifest is written, and the folder is complete.

A folder is found by what the tokens depend on: the contents of the files, not their names, places or times. The tokens
of a file that some folder has are copied (known.py).
"""

import contextlib
import functools
import glob
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

from dfm_jax.data import folders
from dfm_jax.data.corpora import Corpus, local_path, resolve
from dfm_jax.data.encoding import DOCUMENTS, Encoder
from dfm_jax.data.folders import is_complete
from dfm_jax.data.identity import Memory
from dfm_jax.data.journal import PLACES, Journal, UnitWriter, key_of_tokens
from dfm_jax.data.known import Known
from dfm_jax.data.manifest import Manifest, Shard
from dfm_jax.data.progress import Meter, Progress
from dfm_jax.data.rows import Unit
from dfm_jax.data.shards import check_size
from dfm_jax.data.sources import held_out as holding_out
from dfm_jax.data.sources import remote
from dfm_jax.data.tokenizers import Tokenizer, get_tokenizer
from dfm_jax.data.tokenizers.special import SPECIAL, marked
from dfm_jax.data.views.folder import open_stream
from dfm_jax.data.views.records import write_index
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.files import read_json, write_json_atomically

SHARD_BYTES = 1 << 28
PACKINGS = ("continuous", "reference")
ON_ERROR = ("stop", "skip")


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
    note: Callable[[str], None] | None = None,
    field: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_error: str = "stop",
    max_error_share: float = 0.5,
    special: str = "text",
    held_out: float = 0.0,
) -> pathlib.Path:
    """Makes sure that one split of a corpus is in shards; returns their folder, under cache_dir.

    corpus: see corpora.py, or a folder that was prepared already. split: 'train' | 'valid'. num_workers: threads that
    encode, 0 for one per core. packing: 'continuous', or 'reference', which cuts blocks as the published run did.
    shard: (i, n), do only the i-th of n parts of the work (0 <= i < n); the folder is complete when all parts are,
    which `is_complete` tells. Parts are runs of units (a file of the hub, about 256 MB of local files): more parts
    than units leave some with nothing to do. progress: called about twice a second. note: called with each line that
    the user should see. field: the config field to name in errors.
    on_error: 'stop' at what cannot be read, or 'skip' it, counted and named in the manifest, as long as no more than
    max_error_share of the rows, and of the files, are bad. special: marks such as <|endoftext|> in the text are 'text',
    or the tokens that they name ('parse').
    held_out: the share of the corpus's training documents that 'valid' is made of, and 'train' is made without (see
    sources/held_out.py); 0 for a corpus whose splits are its own.

    Does nothing when the folder is complete. Raises UsageError on a spec without meaning, WorldError when text cannot
    be read or shards cannot be written; what was written stays and the next call goes on from there.
    """
    field = field or f"data.{split}"
    note = note or (lambda line: None)
    remote.refuse_credentials(corpus, field)
    tokenizer = get_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    if packing not in PACKINGS:
        raise UsageError(f"data.packing = {packing}: expected {', '.join(PACKINGS)}")
    if on_error not in ON_ERROR:
        raise UsageError(f"data.on_error = {on_error}: expected {', '.join(ON_ERROR)}")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise UsageError(f"shard = {shard[0]}/{shard[1]}: expected i/n with 0 <= i < n")
    if special not in SPECIAL:
        raise UsageError(f"data.special = {special}: expected {', '.join(SPECIAL)}")
    cache = pathlib.Path(os.path.expanduser(cache_dir))
    if (given := folders.given(corpus, field, tokenizer, packing, special, cache)) is not None:
        if held_out:
            raise UsageError(
                f"{field} = {corpus}: made of tokens already, from which nothing is held out: expected the text "
                "itself, or --config.data.valid=TEXT"
            )
        return given
    validation = split == "valid"
    if held_out:
        split = f"held-out-{held_out:g}" if validation else f"train-less-{held_out:g}"
    kept = functools.partial(folders.kept, cache, corpus, split, tokenizer.name, packing, special)
    path = local_path(corpus)
    if path is not None and not os.path.exists(path) and not glob.has_magic(str(path)) and (folder := kept()):
        note(f"{field} = {corpus}: there is no such text now; its shards are used: {folder}")
        return folders.opened(folder, tokenizer.name, on_error, note)
    resolved = resolve(corpus, "train" if held_out else split, field)
    if resolved.records:
        _check_records(tokenizer, packing)
    if held_out:
        resolved = holding_out.side(resolved, held_out, f"{field} = {corpus}", held_out=validation, note=note)
    memory = Memory(cache, note)
    key = (split, tokenizer.name, packing, shard_bytes)
    earlier = cache / folders.folder_name(resolved.name, folders.digest(resolved.earlier(), *key), *key[:2])
    if is_complete(earlier) and special == "text":  # version 0.1's
        return folders.opened(earlier, tokenizer.name, on_error, note)
    try:
        identity = resolved.identity(memory)
    except WorldError as error:  # the hub cannot be asked
        if folder := kept():
            note(f"{error}; the shards that are there are used: {folder}")
            return folders.opened(folder, tokenizer.name, on_error, note)
        raise
    if special != "text":
        identity = {**identity, "special": special}
    folder = folders.find(cache, resolved.name, folders.digest(identity, *key), *key[:2])
    if is_complete(folder):
        return folders.opened(folder, tokenizer.name, on_error, note)
    commit = str(identity.get("commit", ""))
    if "commit" in identity and ":revision=" not in corpus and (older := kept()):
        if commit:
            note(
                f"{field} = {corpus}: the hub has another commit now, {commit}; the shards of commit "
                f"{folders.commit_of(older)} are used: {older}; {corpus}:revision={commit} prepares the other"
            )
        return folders.opened(older, tokenizer.name, on_error, note)
    for line in resolved.left_out:
        note(f"{field} = {corpus}: left out: {line}")
    with _disk_errors(cache_dir):
        folder.mkdir(parents=True, exist_ok=True)
    units = resolved.units(memory)
    with _disk_errors(cache_dir):
        _agree_on_plan(folder, units)
        encoder = Encoder(
            marked(tokenizer, special), resolved.detokenize, resolved.keep_empty, num_workers, resolved.records, special
        )
        part = range(len(units)) if shard is None else _part(len(units), *shard)
        keys = (key_of_tokens(p.key, encoder.key) for i in part for p in units[i].parts)
        writer = UnitWriter(
            folder, encoder, shard_bytes,
            keep_lengths=packing == "reference", skip_faults=on_error == "skip",
            known=Known(cache, encoder.dtype, keys).find,
        )  # fmt: skip
        _write(writer, units, part, progress)
        source = "" if path is None else os.path.abspath(path)
        done = _finish(folder, units, encoder, packing, resolved, split, field, source, commit, max_error_share)
    if done:
        return folders.opened(folder, tokenizer.name, on_error, note)
    return folder


def _check_records(tokenizer: Tokenizer, packing: str) -> None:
    if tokenizer.eos_id < 0:
        raise UsageError(
            f"tokenizer.name = {tokenizer.name}: expected one with an end of text, which ends and pads records"
        )
    if packing != "continuous":
        raise UsageError(f"data.packing = {packing}: expected continuous for records")


def missing_units(folder: str | os.PathLike) -> list[str]:
    """The units of an incomplete folder that no part has finished yet, by name."""
    folder = pathlib.Path(folder)
    names = read_json(folder / "plan.json")
    return [name for i, name in enumerate(names) if not Journal.load(folder, i).done]


def _part(count: int, index: int, parts: int) -> range:
    return range(count * index // parts, count * (index + 1) // parts)


@contextlib.contextmanager
def _disk_errors(cache_dir: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorldError(
            f"data.cache_dir = {cache_dir}: {error.strerror or error}: expected a folder that can be written, "
            "on a disk with room; what is prepared stays, run again to continue"
        ) from error


def _agree_on_plan(folder: pathlib.Path, units: Sequence[Unit]) -> None:
    names = [unit.name for unit in units]
    plan = folder / "plan.json"
    if not plan.exists():
        write_json_atomically(plan, names, durable=True)
    elif read_json(plan) != names:
        raise WorldError(
            f"{folder}: the corpus's files are no longer those that its parts were planned with: "
            "expected the same files for all parts; delete this folder to begin again"
        )


def _write(writer: UnitWriter, units: Sequence[Unit], part: range, progress: Callable[[Progress], None] | None) -> None:
    meter = Meter(sum(units[i].size for i in part), progress)
    for i in part:
        writer.write(i, units[i], meter)
    meter.close()


def _finish(
    folder: pathlib.Path,
    units: Sequence[Unit],
    encoder: Encoder,
    packing: str,
    corpus: Corpus,
    split: str,
    field: str,
    source: str,
    commit: str,
    max_error_share: float,
) -> bool:
    """Writes the manifest if all units are done; leaves the folder incomplete if other parts have yet to come."""
    journals = [Journal.load(folder, i) for i in range(len(units))]
    if not all(journal.done for journal in journals):
        return False
    shards = tuple(shard for journal in journals for shard in journal.shards)
    total = {
        name: sum(getattr(journal, name) for journal in journals)
        for name in ("rows", "documents", "num_bytes", "repaired", "skipped", "bad", "lost")
    }
    places = tuple(place for journal in journals for place in journal.places)[:PLACES]
    files = sum(len(unit.parts) for unit in units)
    for bad, of, what in ((total["bad"], total["rows"] - total["lost"], "rows"), (total["lost"], files, "files")):
        if bad > max_error_share * of:
            raise WorldError(
                f"{field} = {corpus.name}: {bad:,} of {of:,} {what} cannot be read, more than "
                f"data.max_error_share = {max_error_share:g}; the first: {places[0]}: expected a corpus with fewer "
                f"faults, mended (then delete {folder}), or a larger share"
            )
    if not shards:
        what = "records" if encoder.records else "text"
        raise WorldError(
            f"{field} = {corpus.name}: no {what} in it ({total['skipped']:,} rows are empty): expected some {what}"
        )
    for shard in shards:
        check_size(folder, shard, encoder.dtype)
    tokenizer = encoder.tokenizer
    records: tuple[Shard, ...] = ()
    parts: tuple[tuple[str, int], ...] = ()
    if encoder.records:
        records = write_index(folder, shards, encoder.dtype, tokenizer.vocab_size)
        parts = tuple(
            (part.name, record.counts[DOCUMENTS])
            for unit, journal in zip(units, journals, strict=True)
            for part, record in zip(unit.parts, journal.parts, strict=True)
        )
    segments = reference_segments([n for j in journals for n in j.lengths]) if packing == "reference" else ()
    Manifest(
        corpus=corpus.name,
        split=split,
        tokenizer=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        dtype=encoder.dtype,
        packing=packing,
        num_documents=total["documents"],
        num_tokens=sum(shard.num_tokens for shard in shards) - 2 * total["documents"] * encoder.records,
        num_bytes=total["num_bytes"],
        repaired=total["repaired"],
        skipped=total["skipped"],
        shards=shards,
        segments=segments,
        code_version=folders.CODE_VERSION,
        bad=total["bad"],
        lost=total["lost"],
        places=places,
        left_out=corpus.left_out,
        source=source,
        commit=commit,
        special=encoder.special,
        records=records,
        parts=parts,
    ).save(folder)
    return True


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


def summary(folder: str | os.PathLike, lines: int = 3, tokenizer: Tokenizer | None = None) -> str:
    """What a prepared folder holds, and the text that its first tokens stand for.

    tokenizer: that they were made with; None is the one of the manifest's name, which for a tokenizer.json is a hash.
    """
    stream = open_stream(folder)
    m = stream.manifest
    head = stream.read(0, min(stream.num_stored, 200 * lines))
    head = head[head < m.vocab_size]  # without the marks of records
    tokenizer = tokenizer or get_tokenizer(m.tokenizer)
    text = [line for line in tokenizer.decode(head).splitlines() if line.strip()][:lines]
    counts = [
        f"{m.corpus} ({m.split}): {m.num_documents:,} documents, {m.num_tokens:,} tokens of {m.tokenizer}, "
        f"{m.num_bytes:,} bytes of text ({m.num_bytes / m.num_tokens:.2f} a token)",
        f"{len(m.shards)} shards in {os.fspath(folder)}, fingerprint {m.fingerprint}",
    ]
    if m.skipped:
        counts.append(f"skipped {m.skipped:,} rows without text")
    if faults := folders.faults(m.bad, m.lost):
        counts.append(f"left out {faults}: {'; '.join(m.places)}")
    counts += [f"left out {line}" for line in m.left_out]
    if m.repaired:
        counts.append(f"replaced invalid UTF-8 by U+FFFD in {m.repaired:,} documents")
    return "\n".join(counts + ["it begins:"] + [f"  | {line[:100]}" for line in text])
