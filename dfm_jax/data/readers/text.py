"""Plain text: a document a file, in pieces, or a document a line."""

import codecs
from collections.abc import Iterator
from typing import Any

from dfm_jax.data.readers import contents
from dfm_jax.data.readers.base import Source, decode, opened
from dfm_jax.data.rows import Fault, Item, Row, Rules
from dfm_jax.data.tokenizers.pieces import split_stream
from dfm_jax.runtime.errors import UsageError, WorldError

_CHUNK = 1 << 20  # bytes


def read(source: Source) -> Iterator[tuple[Item, float]]:
    if source.rules.form is not None:
        raise UsageError(f"{source.where}: {source.path}: text holds no records: expected JSON lines or Parquet")
    with opened(source) as (stream, raw, size):
        rows = _lines(stream, source) if source.rules.documents == "lines" else _whole(stream, source)
        for row in rows:
            yield row, raw.tell() / size


def _lines(stream: Any, source: Source) -> Iterator[Item]:
    for number, line in enumerate(stream, 1):
        text, repaired = decode(line)
        if "\x00" in text:
            place = f"{source.path}:{number}"
            yield Fault(WorldError(f"{place}: the line holds NULs, so it is no text: expected text"), place)
            continue
        yield Row(_line(text, source.rules), True, repaired)


def _line(text: str, rules: Rules) -> str:
    if rules.keep_newline:
        return text if text.strip() else ""
    return text.rstrip("\r\n")


def _whole(stream: Any, source: Source) -> Iterator[Item]:
    """The file as one document, in pieces whose tokens do not depend on the cuts."""
    chunks = _Chunks(stream, source)
    if source.rules.detokenize:  # its rules look at the document as a whole
        yield Row("".join(chunks), True, chunks.repaired)
        return
    before = None
    try:
        for piece in split_stream(iter(chunks), source.cut):
            if before is not None:
                yield Row(before, False)
            before = piece
    except Exception:  # what was read stays, and the document has an end
        if before is not None:
            yield Row(before, True, chunks.repaired)
        raise
    yield Row(before or "", True, chunks.repaired)


class _Chunks:
    """The text of a stream of UTF-8, in chunks. repaired: whether something in those so far was invalid."""

    def __init__(self, stream: Any, source: Source):
        self._stream, self._source = stream, source
        self.repaired = False

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        position = 0
        while new := self._stream.read(_CHUNK):
            data = decoder.getstate()[0] + new
            decoder.reset()
            text = decoder.decode(data)
            if "\x00" in text or contents.mostly_invalid(data, text):
                raise WorldError(
                    f"{self._source.path}: no text from byte {position} on (NULs, or mostly invalid UTF-8): "
                    "expected text throughout; a file that was cut off by a crash ends so"
                )
            self.repaired = self.repaired or ("\ufffd" in text and not contents.is_utf8(data))
            position += len(new)
            yield text
        if rest := decoder.decode(b"", final=True):
            self.repaired = True
            yield rest
