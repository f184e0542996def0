"""JSON lines: a document an object, its text under one key."""

import json
import re
from collections.abc import Iterator

from dfm_jax.data.readers.base import Source, decode, missing_column, opened
from dfm_jax.data.rows import Fault, Item, Row
from dfm_jax.runtime.errors import UsageError, WorldError

_SURROGATE = re.compile("[\ud800-\udfff]")


def read(source: Source) -> Iterator[tuple[Item, float]]:
    with opened(source) as (stream, raw, size):
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = _row(line, source, f"{source.path}:{number}")
            except (UsageError, WorldError) as error:
                row = Fault(error, f"{source.path}:{number}")
            yield row, raw.tell() / size


def _row(line: bytes, source: Source, place: str) -> Item:
    text, repaired = decode(line)
    try:
        row = json.loads(text.removeprefix("\ufeff"))
    except ValueError as error:
        raise WorldError(f"{place}: not JSON ({error}): expected one object a line") from None
    except RecursionError:
        raise WorldError(f"{place}: JSON nested too deep: expected one object a line, its text at the top") from None
    if not isinstance(row, dict):
        raise WorldError(f"{place}: not a JSON object: expected one object a line")
    if (form := source.rules.records()) is not None:
        return form.record(row, place, repaired)
    column = source.rules.column
    if column not in row:
        raise missing_column(source.where, column, list(row), place)
    value = row[column]
    if value is None:
        return None
    if not isinstance(value, str):
        raise UsageError(f"{source.where}: column {column} at {place} is no text: expected a column of texts")
    if _SURROGATE.search(value):  # "\ud800" alone is valid JSON and no text
        value, repaired = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), True
    return Row(value, True, repaired)
