"""JSON lines: a document an object, its text under one key."""

import json
from collections.abc import Iterator
from typing import Any

from dfm_jax.data.readers.base import Source, decode, missing_column, opened
from dfm_jax.data.readers.records import whole
from dfm_jax.data.rows import Fault, Item, Row
from dfm_jax.runtime.errors import UsageError, WorldError


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
    form = source.rules.form
    names: list[str] = []  # of the object at the top, which ends last

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names[:] = [name for name, _ in pairs]
        return dict(pairs)

    try:
        row = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=None if form is None else made)
    except ValueError as error:
        raise WorldError(f"{source.where}: {place}: not JSON ({error}): expected one object a line") from None
    except RecursionError:
        raise WorldError(
            f"{source.where}: {place}: JSON nested too deep: expected one object a line, its text at the top"
        ) from None
    if not isinstance(row, dict):
        raise WorldError(f"{source.where}: {place}: not a JSON object: expected one object a line")
    if form is not None:
        form.check(names, place)
        return form.record(row, place, repaired)
    column = source.rules.column
    if column not in row:
        raise missing_column(source.where, column, list(row), place)
    value = row[column]
    if value is None:
        return None
    if not isinstance(value, str):
        raise UsageError(f"{source.where}: column {column} at {place} is no text: expected a column of texts")
    text = whole(value)
    return Row(text, True, repaired or text != value)
