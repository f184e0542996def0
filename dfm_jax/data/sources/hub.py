"""Datasets of the Hugging Face hub, streamed, and folders that `save_to_disk` wrote, as rows of text."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from dfm_jax.data.identity import Memory
from dfm_jax.data.readers.base import missing_column
from dfm_jax.data.readers.parquet import column_rows, records
from dfm_jax.data.rows import Cut, Fault, Form, Item, Row, Unit
from dfm_jax.runtime.errors import UsageError, WorldError

_BATCH = 256
_SECONDS = 10.0  # that the hub has for an answer; it is asked once
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a dataset of the hub, or of a local folder that is laid out like one."""

    path: str
    config: str | None
    split: str
    revision: str | None
    column: str
    where: str  # FIELD = VALUE, for errors
    form: Form | None = None  # of records

    def asked_for(self) -> dict[str, Any]:
        """What the user wrote, which does not say what the hub has: `commit` does."""
        fields = dataclasses.asdict(self)
        del fields["where"], fields["form"]
        return fields

    def commit(self) -> str:
        """The commit that the revision stands for now; '' for a local folder, and offline. Asks the hub, once.

        Raises UsageError when the hub has no such dataset or revision, WorldError when it cannot be asked.
        """
        if os.path.isdir(self.path) or _COMMIT.fullmatch(self.revision or ""):
            return self.revision or ""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            found = huggingface_hub.HfApi().dataset_info(self.path, revision=self.revision, timeout=_SECONDS)
        except errors.RevisionNotFoundError as error:
            raise UsageError(f"{self.where}: {self.path} has no revision {self.revision}") from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            raise UsageError(
                f"{self.where}: no such file here, and no such dataset on the hub (or it needs a login): expected "
                "a path that exists, or OWNER/DATASET"
            ) from error
        except errors.OfflineModeIsEnabled:  # HF_HUB_OFFLINE: what the library keeps on this disk may do
            return ""
        except Exception as error:  # the network's errors have no common class
            raise self._unreachable(error) from error
        return found.sha or ""

    def units(self) -> list[Unit]:
        """One per file of the dataset. Asks the hub. Raises WorldError when it cannot be asked."""
        commit = self.commit()
        dataset = self._load(commit)
        columns = dataset.column_names or list(next(iter(dataset), {}))
        if columns and self.form is not None:
            self.form.check(columns, f"{self.path} ({self.split})")
        elif columns and self.column not in columns:
            raise missing_column(self.where, self.column, columns, f"{self.path} ({self.split})")
        count = dataset.num_shards
        return [Unit([StreamPart(dataset, i, count, self.column, self.where, self.form)]) for i in range(count)]

    def _load(self, commit: str):
        import datasets

        try:
            return datasets.load_dataset(
                self.path, self.config, split=self.split, revision=commit or self.revision, streaming=True
            )
        except ValueError as error:  # an unknown config or split: the message lists those there are
            raise UsageError(f"{self.where}: {_line(error)}") from error
        except Exception as error:  # the hub's errors have no common class
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> WorldError:
        return WorldError(
            f"{self.where}: {self.path} cannot be loaded from the hub ({type(error).__name__}: {_line(error)}): "
            "expected a machine with network, NAME@PATH with local files, or a path that exists"
        )


class StreamPart:
    """One file of a streamed dataset."""

    size = 1
    key = ""

    def __init__(self, dataset: Any, index: int, count: int, column: str, where: str, form: Form | None = None):
        self.name = f"file {index + 1} of {count}"
        self._dataset, self._index, self._count = dataset, index, count
        self._column, self._where, self._form = column, where, form
        self._read = 0.0

    def fraction(self) -> float:
        return self._read

    def rows(self, skip: int, cut: Cut) -> Iterator[Item]:
        columns = [self._column] if self._form is None else [*self._form.columns]
        dataset = self._dataset.shard(num_shards=self._count, index=self._index).select_columns(columns)
        expected = self._expected()
        done = skip
        try:
            for table in dataset.skip(skip).with_format("arrow").iter(batch_size=_BATCH):
                yield from _rows(table, self._column, self._where, self._form, self.name, done)
                done += table.num_rows
                self._read = min(1.0, done / expected) if expected else 0.0
        except UsageError as error:  # a column that is no text
            yield Fault(error, f"{self._where}: {self.name}", file=True)
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
    folder = pathlib.Path(os.path.expanduser(path))
    return any(os.path.isfile(folder / name) for name in ("state.json", "dataset_dict.json"))


def saved_folder(path: str, wanted: str | None, split: str, where: str) -> pathlib.Path:
    """The folder of one split: of a dictionary of splits `wanted`, or that of our `split`."""
    folder = pathlib.Path(os.path.expanduser(path))
    if (folder / "dataset_dict.json").is_file():
        names = sorted(p.name for p in folder.iterdir() if (p / "state.json").is_file())
        choices = [wanted] if wanted else {"train": ["train"], "valid": ["validation", "valid"]}[split]
        name = next((choice for choice in choices if choice in names), None)
        if name is None:
            raise UsageError(f"{where}: no split {' or '.join(choices)}: expected :split= one of {', '.join(names)}")
        return folder / name
    if wanted:
        raise UsageError(f"{where}: split = {wanted}: this folder holds a single split: expected no split=")
    return folder


def saved_identity(folder: pathlib.Path, memory: Memory) -> list[str]:
    """The contents of its tables, in their order."""
    return memory.hashes(sorted(folder.glob("*.arrow")))


def saved_stamps(folder: pathlib.Path) -> list[Any]:
    """Version 0.1's identity."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


class SavedPart:
    """A folder that `Dataset.save_to_disk` wrote."""

    def __init__(self, folder: pathlib.Path, column: str, where: str, form: Form | None = None):
        self.name = os.fspath(folder)
        self.size = sum(p.stat().st_size for p in folder.glob("*.arrow"))
        self._folder, self._column, self._where, self._form = folder, column, where, form
        self.key = ""
        self._read = 0.0

    def fraction(self) -> float:
        return self._read

    def rows(self, skip: int, cut: Cut) -> Iterator[Item]:
        import datasets

        try:
            dataset: Any = datasets.load_from_disk(os.fspath(self._folder))
        except Exception as error:  # a damaged folder: Arrow's, JSON's and the file system's errors
            raise WorldError(f"{self._where}: {self._folder} cannot be loaded ({_line(error)})") from error
        if self._form is not None:
            self._form.check(dataset.column_names, self.name)
        elif self._column not in dataset.column_names:
            raise missing_column(self._where, self._column, dataset.column_names, str(self._folder))
        columns = [self._column] if self._form is None else [*self._form.columns]
        tables: Any = dataset.select_columns(columns).with_format("arrow")
        for start in range(skip, len(dataset), _BATCH):
            table = tables[start : start + _BATCH]
            yield from _rows(table, self._column, self._where, self._form, self.name, start)
            self._read = min(1.0, (start + _BATCH) / len(dataset))


def _rows(
    table: Any, column: str, where: str, form: Form | None, name: str, first: int
) -> Iterator[Row | Fault | None]:
    if form is not None:
        yield from records(table, form, name, first)
        return
    for chunk in table.column(column).chunks:
        yield from column_rows(chunk, where, column)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
