"""Files as rows of text. A new kind of file is a module in this folder and a line in READERS.

`recognise` tells what a file is from its name and its first bytes, and refuses what is no text; `read` gives its rows.
"""

import contextlib
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dfm_jax.data.readers import compression, contents, jsonl, parquet, records, text
from dfm_jax.data.readers.base import Found, Source
from dfm_jax.data.rows import Cut, Fault, Item, Rules
from dfm_jax.runtime.errors import UsageError, WorldError


class Reader(NamedTuple):
    """suffixes: names that say this kind, in lower case. options: of a corpus's spec that mean something for it.
    read: the rows of a file, each with the fraction of the file that has been read.
    groups: how many row groups a file has, for files that can be divided between machines.
    """

    suffixes: tuple[str, ...]
    options: tuple[str, ...]
    read: Callable[[Source], Iterator[tuple[Item, float]]]
    groups: Callable[[pathlib.Path], int] | None = None


READERS: dict[str, Reader] = {
    "text": Reader((".txt", ".raw"), ("documents",), text.read),
    "jsonl": Reader((".jsonl",), ("column", *records.OPTIONS), jsonl.read),
    "parquet": Reader((".parquet",), ("column", *records.OPTIONS), parquet.read, parquet.num_groups),
}
SUFFIXES = tuple(suffix for reader in READERS.values() for suffix in reader.suffixes)
ACCEPTED = (
    f"files that end in {', '.join(SUFFIXES)}, the text ones also with {', '.join(compression.SUFFIXES)}, "
    "in any case of letters"
)


def kind_of_name(path: pathlib.Path) -> str:
    """The kind of READERS that a name says, without regard to compression and case; '' when it says none."""
    _, suffix = compression.of_name(path)
    return next((kind for kind, reader in READERS.items() if suffix in reader.suffixes), "")


def recognise(path: pathlib.Path) -> Found:
    """What `path` is. Raises WorldError, one line, where it is nothing that this program reads as text."""
    with readable(path):
        named, suffix = compression.of_name(path)
        with open(path, "rb") as raw:
            first = raw.read(contents.HEAD)
            packed = compression.of_content(first)
            if named and first and packed != named:
                raise _refusal(path, f"the file is not {named}")
            if packed:
                raw.seek(0)
                first = compression.opened(raw, packed).read(contents.HEAD)
    kind = kind_of_name(path)
    if compression.of_content(first):
        raise _refusal(path, "it is compressed twice: expected one compression")
    if contents.is_parquet(first):
        if packed:
            raise _refusal(path, f"a Parquet file inside {packed}: expected the Parquet file, unpacked")
        return Found("parquet")
    if kind == "parquet":
        raise _refusal(path, "the file is empty" if not first else "it does not begin as Parquet does")
    if what := contents.foreign(first):
        raise _refusal(path, f"{what}: expected text, JSON lines or Parquet")
    encoding = contents.encoding(first)
    if what := contents.not_text(first, encoding):
        raise _refusal(path, what)
    if not kind:
        kind, what = contents.kind_of_text(contents.decoded(first, encoding), suffix)
        if what:
            raise _refusal(path, what)
    return Found(kind, packed, encoding)


def _refusal(path: pathlib.Path, what: str) -> WorldError:
    _, suffix = compression.of_name(path)
    name = "".join(path.suffixes[-2:]) if suffix in SUFFIXES and suffix != path.suffix.lower() else path.suffix
    return WorldError(f"{path}: cannot be read as {name if kind_of_name(path) else 'text'}: {what}")


def read(
    path: pathlib.Path, rules: Rules, cut: Cut, where: str, groups: range | None = None
) -> Iterator[tuple[Item, float]]:
    """The rows of a file, each with the fraction of the file that has been read.

    Whatever is wrong with the file is a last Fault, which says that the rest of it is lost.
    """
    try:
        found = recognise(path)
        with readable(path):
            yield from READERS[found.kind].read(Source(path, found, rules, cut, where, groups))
    except (UsageError, WorldError) as error:
        yield Fault(error, str(path), file=True), 1.0


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
    """Turns every way in which a file's reader fails into a WorldError."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, EOFError, zlib.error, *_errors_of_libraries())):
            raise
        lines = str(error.strerror if isinstance(error, OSError) and error.strerror else error).strip().splitlines()
        raise _refusal(path, lines[0] if lines else type(error).__name__) from error


def _errors_of_libraries() -> Iterator[type[Exception]]:
    """Of those that were needed so far: plain text needs none of them."""
    for module, name in (("pyarrow", "ArrowException"), ("zstandard", "ZstdError"), ("lzma", "LZMAError")):
        if module in sys.modules:
            yield getattr(sys.modules[module], name)
