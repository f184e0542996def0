"""Parquet: a document a row, its text in one column; and the same of any Arrow column of texts."""

import pathlib
from collections.abc import Iterator
from typing import Any

from dfm_jax.data.readers.base import Source, decode, missing_column
from dfm_jax.data.rows import Item, Row
from dfm_jax.runtime.errors import UsageError


def read(source: Source) -> Iterator[tuple[Item, float]]:
    import pyarrow.parquet

    column = source.rules.column
    with pyarrow.parquet.ParquetFile(source.path) as file:
        if column not in file.schema_arrow.names:
            raise missing_column(source.where, column, file.schema_arrow.names, str(source.path))
        groups = list(source.groups or range(file.metadata.num_row_groups))
        read, total = 0, max(sum(file.metadata.row_group(i).num_rows for i in groups), 1)
        for batch in file.iter_batches(256, row_groups=groups, columns=[column]):
            read += batch.num_rows
            for row in column_rows(batch.column(0), f"{source.where}: {source.path}", column):
                yield row, read / total


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
