"""The manifest of a prepared folder: what is in it, and what was left out."""

import dataclasses
import functools
import hashlib
import json
import pathlib

from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.files import write_json_atomically

FORMAT = 1
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of the stream; `sha256` is that of its tokens, little-endian, without the .npy header."""

    name: str
    num_tokens: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds. Counts are of documents, tokens (EOS included) and UTF-8 bytes (EOS excluded)."""

    corpus: str
    split: str
    tokenizer: str
    vocab_size: int
    eos_id: int
    dtype: str
    packing: str
    num_documents: int
    num_tokens: int
    num_bytes: int
    repaired: int  # documents whose invalid UTF-8 was replaced by U+FFFD
    skipped: int  # rows without text
    shards: tuple[Shard, ...]
    segments: tuple[int, ...]  # tokens of each run that is cut into blocks by itself; empty: the whole stream is one
    code_version: str
    bad: int = 0  # rows that could not be read, left out with data.on_error=skip
    lost: int = 0  # files that could not be read to their end, likewise
    places: tuple[str, ...] = ()  # the first of both
    left_out: tuple[str, ...] = ()  # what the corpus's folder held and was not read, a line for each reason
    source: str = ""  # the path of local text, absolute
    commit: str = ""  # of a dataset of the hub
    special: str = "text"  # what the tokenizer's special tokens in the text became: 'text', or those tokens ('parse')
    records: tuple[Shard, ...] = ()  # where the marks of records are (see views/records.py); none for text
    parts: tuple[tuple[str, int], ...] = ()  # the files of records, by name, and how many are in each
    format: int = FORMAT

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the tokens, their order and their tokenizer, whatever they were read from: 16 hex digits."""
        content = [self.tokenizer, self.vocab_size, self.eos_id, self.segments, [s.sha256 for s in self.shards]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @staticmethod
    def load(folder: pathlib.Path) -> "Manifest":
        """Raises WorldError when there is none or it cannot be read."""
        path = folder / MANIFEST
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields.get("format") != FORMAT:
                raise WorldError(
                    f"{path}: format = {fields.get('format')}: expected {FORMAT}; prepare the corpus again"
                )
            fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
            fields["records"] = tuple(Shard(**shard) for shard in fields.get("records", ()))
            fields["parts"] = tuple((name, count) for name, count in fields.get("parts", ()))
            for name in ("segments", "places", "left_out"):
                fields[name] = tuple(fields.get(name, ()))
            return Manifest(**fields)
        except OSError as error:
            raise WorldError(f"{path}: {error.strerror}: expected a folder made by --mode=prepare") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise WorldError(f"{path}: not a manifest of this program ({error}): prepare the corpus again") from error

    def save(self, folder: pathlib.Path) -> None:
        write_json_atomically(folder / MANIFEST, dataclasses.asdict(self), durable=True)
