"""Parquet: a document a row, its text in one column; and the same of any Arrow column of texts."""

import pathlib
from collections.abc import Iterator
from typing import Any

from dfm_jax.data.readers.base import Source, decode, missing_column
from dfm_jax.data.rows import Fault, Form, Item, Row
from dfm_jax.runtime.errors import UsageError, WorldError


def read(source: Source) -> Iterator[tuple[Item, float]]:
    import pyarrow.parquet

    column, form = source.rules.column, source.rules.form
    with pyarrow.parquet.ParquetFile(source.path) as file:
        if form is not None:
            form.check(file.schema_arrow.names, str(source.path))
        elif column not in file.schema_arrow.names:
            raise missing_column(source.where, column, file.schema_arrow.names, str(source.path))
        groups = list(source.groups or range(file.metadata.num_row_groups))
        read, total = 0, max(sum(file.metadata.row_group(i).num_rows for i in groups), 1)
        before = sum(file.metadata.row_group(i).num_rows for i in range(groups[0])) if groups else 0
        for batch in file.iter_batches(256, row_groups=groups, columns=[column] if form is None else [*form.columns]):
            if form is None:
                rows = column_rows(batch.column(0), f"{source.where}: {source.path}", column)
            else:
                rows = records(batch, form, str(source.path), before + read)
            read += batch.num_rows
            for row in rows:
                yield row, read / total


def records(batch: Any, form: Form, place: str, first: int) -> Iterator[Item]:
    """The records of an Arrow batch or table; first: how many rows of `place` come before it."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        last = first + batch.num_rows
        raise WorldError(f"{place}: rows {first + 1} to {last} hold invalid UTF-8: expected text") from error
    for number, row in enumerate(rows, first + 1):
        try:
            record = form.record(row, f"{place}, row {number}")
        except UsageError as error:
            record = Fault(error, f"{place}, row {number}")
        yield record


def num_groups(path: pathlib.Path) -> int:
    """How many row groups the file has."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return file.metadata.num_row_groups


def column_rows(array: Any, where: str, column: str) -> Iterator[Row | None]:
    """The rows of an Arrow array of strings of any layout. A column without a type holds nothing but nulls."""
    import pyarrow

    types = pyarrow.types
    layout = array.type.value_type if types.is_dictionary(array.type) else array.type
    if types.is_null(layout):
        yield from (None for _ in range(len(array)))
        return
    if not (types.is_string(layout) or types.is_large_string(layout) or types.is_string_view(layout)):
        raise UsageError(f"{where}: column {column} holds {array.type}: expected a column of texts")
    try:
        for text in array.to_pylist():
            yield None if text is None else Row(text)
    except UnicodeDecodeError:  # to_pylist raises before the first row
        for data in array.cast(layout).cast(pyarrow.large_binary()).to_pylist():
            yield None if data is None else Row(*_repaired(data))


def _repaired(data: bytes) -> tuple[str, bool, bool]:
    text, repaired = decode(data)
    return text, True, repaired
