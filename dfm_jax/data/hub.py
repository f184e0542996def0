"""Datasets of the Hugging Face hub, streamed, and folders that `save_to_disk` wrote, as rows of text."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from dfm_jax.data.local import column_rows, missing_column
from dfm_jax.data.rows import Row
from dfm_jax.errors import UsageError, WorldError

_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a dataset of the hub, or of a local folder that is laid out like one."""

    path: str
    config: str | None
    split: str
    revision: str | None
    column: str
    where: str  # FIELD=VALUE, for errors

    def identity(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        del fields["where"]
        return fields

    def units(self) -> list["StreamUnit"]:
        """One per file of the dataset. Asks the hub. Raises WorldError when it cannot be asked."""
        dataset = self._load()
        columns = dataset.column_names or list(next(iter(dataset), {}))
        if columns and self.column not in columns:
            raise missing_column(self.where, self.column, columns, f"{self.path} ({self.split})")
        count = dataset.num_shards
        return [StreamUnit(dataset, i, count, self.column, self.where) for i in range(count)]

    def _load(self):
        import datasets

        try:
            return datasets.load_dataset(
                self.path, self.config, split=self.split, revision=self.revision, streaming=True
            )
        except ValueError as error:  # an unknown config or split: the message lists those there are
            raise UsageError(f"{self.where}: {_line(error)}") from error
        except Exception as error:  # the hub's errors have no common class
            raise WorldError(
                f"{self.where}: {self.path} cannot be loaded ({type(error).__name__}: {_line(error)}): "
                "accepted a machine with network, or NAME@PATH with local files"
            ) from error


class StreamUnit:
    """One file of a streamed dataset."""

    size = 1

    def __init__(self, dataset: Any, index: int, count: int, column: str, where: str):
        self.name = f"file {index + 1} of {count}"
        self._dataset, self._index, self._count = dataset, index, count
        self._column, self._where = column, where
        self._read = 0.0

    def fraction(self) -> float:
        return self._read

    def rows(self, skip: int) -> Iterator[Row | None]:
        dataset = self._dataset.shard(num_shards=self._count, index=self._index).select_columns([self._column])
        expected = self._expected()
        done = skip
        try:
            for table in dataset.skip(skip).with_format("arrow").iter(batch_size=_BATCH):
                yield from _rows(table, self._column, self._where)
                done += table.num_rows
                self._read = min(1.0, done / expected) if expected else 0.0
        except (UsageError, WorldError):
            raise
        except Exception as error:  # network, decoding: whatever the dataset's reader raises
            raise WorldError(
                f"{self._where}: {self.name}: reading stopped after {done} rows ({type(error).__name__}: "
                f"{_line(error)}): what is prepared stays; run again to continue"
            ) from error
        self._read = 1.0

    def _expected(self) -> float:
        split = (self._dataset.info.splits or {}).get(str(self._dataset.split))
        return split.num_examples / self._count if split and split.num_examples else 0.0


def is_saved(path: str) -> bool:
    """Whether path is a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    folder = pathlib.Path(path).expanduser()
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def saved(path: str, wanted: str | None, split: str, column: str, where: str) -> tuple["SavedUnit", list[Any]]:
    """Unit and identity of a saved folder; of a dictionary of splits, `wanted` or that of our `split`."""
    folder = pathlib.Path(path).expanduser()
    if (folder / "dataset_dict.json").is_file():
        names = sorted(p.name for p in folder.iterdir() if (p / "state.json").is_file())
        choices = [wanted] if wanted else {"train": ["train"], "valid": ["validation", "valid"]}[split]
        name = next((choice for choice in choices if choice in names), None)
        if name is None:
            raise UsageError(f"{where}: no split {' or '.join(choices)}: accepted :split= one of {', '.join(names)}")
        folder = folder / name
    elif wanted:
        raise UsageError(f"{where}: split={wanted}: this folder holds a single split: accepted no split=")
    files = sorted(p for p in folder.iterdir() if p.is_file())
    identity = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    return SavedUnit(folder, column, where), identity


class SavedUnit:
    """A folder that `Dataset.save_to_disk` wrote."""

    def __init__(self, folder: pathlib.Path, column: str, where: str):
        self.name = os.fspath(folder)
        self.size = sum(p.stat().st_size for p in folder.glob("*.arrow"))
        self._folder, self._column, self._where = folder, column, where
        self._read = 0.0

    def fraction(self) -> float:
        return self._read

    def rows(self, skip: int) -> Iterator[Row | None]:
        import datasets

        try:
            dataset: Any = datasets.load_from_disk(os.fspath(self._folder))
        except Exception as error:  # a damaged folder: Arrow's, JSON's and the file system's errors
            raise WorldError(f"{self._where}: {self._folder} cannot be loaded ({_line(error)})") from error
        if self._column not in dataset.column_names:
            raise missing_column(self._where, self._column, dataset.column_names, str(self._folder))
        tables: Any = dataset.select_columns([self._column]).with_format("arrow")
        for start in range(skip, len(dataset), _BATCH):
            yield from _rows(tables[start : start + _BATCH], self._column, self._where)
            self._read = min(1.0, (start + _BATCH) / len(dataset))


def _rows(table: Any, column: str, where: str) -> Iterator[Row | None]:
    for chunk in table.column(column).chunks:
        yield from column_rows(chunk, where, column)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
