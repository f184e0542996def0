"""The checkpoints of a run. They are written in the background, are complete or absent, and are checked when read.

A save goes through three folders. Only the last one has the step as its name:

    .incoming/STEP.orbax-checkpoint-tmp   orbax writes here, from a copy of the arrays, while training continues
    .incoming/STEP                        orbax has finished; the checksums of the files are added
    STEP                                  renamed: complete, flushed to the disk, with `checksums.json`

A folder named STEP was therefore complete when it was made. A process that is killed leaves such a folder, or something
under `.incoming`, which the next run removes. If the checksums of a folder STEP are wrong or missing, it was damaged
later. It is then reported and renamed to `STEP.damaged`, and the checkpoint before it is used.
"""

import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from dfm_jax.checkpoints import best, checksums, tree_names
from dfm_jax.checkpoints.saving import ITEM, Save, first_line, ocp
from dfm_jax.runtime import files, logs, processes
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.terminal import note, warn

_INCOMING = ".incoming"
_TRASH = ".trash"
_METADATA = "_CHECKPOINT_METADATA"  # orbax's file with the metadata that `save` was given
_FEW = 8  # differences that a message lists


class Checkpoints:
    """The checkpoints in `directory`.

    With `keep_last` the object is the run's writer. There is one in every process of the run, and a folder has only one
    run that writes (see `dfm_jax.runtime.lock`). It keeps the newest `keep_last` checkpoints, every checkpoint whose
    step is a multiple of `keep_every` (0 for no others), and the one of `mark_best`. Without `keep_last` the object
    only reads, and changes nothing on the disk.

    Arrays are stored under flat names ("model.blocks.qkv.kernel.value"), one per leaf of the saved tree. Some of them
    can be read alone, on any mesh and with any number of processes.

    Raises:
      ValueError: keep_last is below 1.
      WorldError: the folder cannot be written to (only for a writer).
    """

    def __init__(self, directory: str | os.PathLike, *, keep_last: int | None = None, keep_every: int = 0):
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last = {keep_last}: expected 1 or more")
        self.directory = pathlib.Path(directory).absolute()
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._save: Save | None = None
        self._failed: int | None = None  # the newest save, if it failed
        self._trusted: set[int] = set()  # steps that this object saved or restored
        if self._writes and processes.is_first():
            files.ensure_writable(self.directory, field="checkpoints")
            for leftover in (_INCOMING, _TRASH):
                shutil.rmtree(self.directory / leftover, ignore_errors=True)

    @property
    def _writes(self) -> bool:
        return self._keep_last is not None

    # Looking

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending. The checkpoints are not verified."""
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def latest_step(self) -> int | None:
        """The newest step that has a checkpoint, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step that `mark_best` named last, if its checkpoint is there, or None."""
        found = best.read(self.directory)
        return found.step if found is not None and (self.directory / str(found.step)).is_dir() else None

    def mark_best(self, step: int, loss: float) -> None:
        """Keeps checkpoint `step`, which `save` was given, until another one is marked. Every process may call it."""
        if self._writes and processes.is_first():
            best.write(self.directory, best.Best(step, loss))

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """The `metadata` that `save` was given; of the newest checkpoint with intact metadata if `step` is None.

        It reads no array.

        Raises:
          WorldError: there is no such checkpoint, or it cannot be read.
        """
        if step is None:
            intact = (
                s for s in reversed(self.steps()) if not checksums.problems(self.directory / str(s), only=_METADATA)
            )
            step = next(intact, None)
        if step is None:
            raise WorldError(f"checkpoints = {self.directory}: expected an intact checkpoint, and none is left")
        return self._read_metadata(step).custom_metadata or {}

    def arrays(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The names, shapes and dtypes of the stored arrays. Raises as `metadata` does."""
        stored = self._read_metadata(step).metadata[ITEM]
        return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in stored.items()}

    def _read_metadata(self, step: int) -> Any:
        path = self.directory / str(step)
        if not path.is_dir():
            raise WorldError(f"step = {step}: expected {self._describe_steps()}")
        try:
            with logs.of_the_program():
                return ocp.checkpointables_metadata(str(path))
        except Exception as error:
            raise WorldError(f"checkpoint = {path}: expected an intact checkpoint ({first_line(error)})") from error

    def _describe_steps(self) -> str:
        steps = self.steps()
        return f"a checkpoint in {self.directory}: {', '.join(map(str, steps)) if steps else 'there is none'}"

    def array(self, *names: str, step: int | None = None) -> np.ndarray:
        """Reads one array by its flat name, such as "model.embedding.table.value", whole on this host, without a model.

        names: the first one that the checkpoint has is read. step: None for the newest intact checkpoint. Either every
        process calls this, or only one.

        Raises:
          WorldError: there is no such checkpoint or array, or it cannot be read.
        """
        chosen, damaged = self._choose(step)
        if chosen is None:
            raise WorldError(self._explain_none(step, damaged))
        path, stored = self.directory / str(chosen), self.arrays(chosen)
        name = next((name for name in names if name in stored), None)
        if name is None:
            few = ", ".join(sorted(stored)[:_FEW])
            raise WorldError(f"checkpoint={path}: has no array {' or '.join(names)}; expected one of {few}, ...")
        return np.asarray(_load(path, {name: _placed(stored[name])}, part=True)[name])

    # Writing

    def save(self, step: int, state: Any, *, metadata: dict[str, Any] | None = None, block: bool = False) -> bool:
        """Saves the arrays of the pytree `state` as checkpoint `step`. Every process must call it.

        It first waits for the save before this one. It returns when the arrays are copied to the host, so `state` may
        be donated after that. With `block` it returns when the checkpoint is complete.

        A save that fails, for example on a full disk, prints a warning and leaves the earlier checkpoints as they are.
        Training may continue, and the next save tries again.

        Args:
          step: updates applied so far.
          state: pytree of `jax.Array`, none of them empty.
          metadata: a JSON value stored beside the arrays.
          block: wait until the checkpoint is complete.

        Returns: False if this step already has a checkpoint that this object saved or restored.

        Raises:
          WorldError: with `block`, the checkpoint could not be written. Without `block`, `wait` raises it.
        """
        if not self._writes:
            raise ValueError("save: this Checkpoints has no keep_last, it only reads")
        self._settle()
        if step in self._trusted:
            return False
        self._save = Save(
            self.directory / _INCOMING / str(step),
            step,
            tree_names.flatten(state),
            metadata,
            publish=lambda incoming: self._publish(incoming, step),
            failed=lambda error: self._report(error, step),
        )
        if block:
            self.wait()
        return True

    def wait(self) -> None:
        """Waits for the running save, if there is one. Every process must call it.

        Raises:
          WorldError: the newest save has failed. (`save` ignores the failure of an earlier one.)
        """
        self._settle()
        if self._failed is not None:
            raise WorldError(
                f"checkpoint = {self.directory / str(self._failed)}: expected a disk with room for it; not saved"
            )

    def _settle(self) -> None:
        if self._save is not None:
            save, self._save = self._save, None
            save.join()
            if processes.from_first(int(save.succeeded)):
                self._trusted.add(save.step)
                self._failed = None
            else:
                self._failed = save.step

    def close(self) -> None:
        """The same as `wait`."""
        self.wait()

    def prune(self, keep_last: int) -> None:
        """Deletes all checkpoints but the newest `keep_last`, those of `keep_every` and the best one.

        Every process may call it.
        """
        self._settle()
        if self._writes and processes.is_first():
            steps = self.steps()
            for old in steps[:-keep_last]:
                if not self._keeps(old):
                    self._discard(old)

    def _keeps(self, step: int) -> bool:
        """Whether a checkpoint stays however many newer ones there are."""
        return bool(self._keep_every and step % self._keep_every == 0) or step == self.best_step()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *rest) -> None:
        if exception_type is None:
            self.close()
        elif self._save is not None:
            self._save.join()  # no agreement with the other processes, which may not get here

    def set_aside_unproven(self, step: int) -> int | None:
        """Renames checkpoint `step` to `STEP.diverged`, if there is one. Every process must call it.

        For a run that ends because no update after `step` was finite. The last update before the checkpoint was finite,
        but training cannot continue from it. The next start uses the checkpoint before it.

        Returns: the newest step that is left, or None.
        """
        self._settle()
        if self._writes and processes.is_first() and (self.directory / str(step)).is_dir():
            self._rename(step, "diverged")
        newest = processes.from_first(-1 if (latest := self.latest_step()) is None else latest)
        return None if newest < 0 else newest

    # Reading

    def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any]:
        """Restores the newest intact checkpoint, or `step`, onto the shardings of `abstract`.

        Every process must call it. Damaged checkpoints are reported, and the writer renames them to `STEP.damaged`.

        Args:
          abstract: pytree of `jax.ShapeDtypeStruct` (or arrays) as saved. A leaf without a sharding goes to one device.
          step: restore only this one; None for the newest intact one.

        Returns: the step, and a tree like `abstract` of arrays.

        Raises:
          WorldError: no checkpoint is intact, or its arrays differ from `abstract`. The error says which.
        """
        return self._restore(abstract, (), step)

    def restore_subtree(self, abstract: Any, *prefixes: str, step: int | None = None) -> tuple[int, Any]:
        """Restores the part of the saved tree under a prefix, such as "ema" or "model". Otherwise as `restore`.

        Of several prefixes it takes the first one that the checkpoint has. Arrays are cast to the dtypes of `abstract`.
        """
        return self._restore(abstract, prefixes, step)

    def _restore(self, abstract: Any, prefixes: tuple[str, ...], step: int | None) -> tuple[int, Any]:
        self._settle()
        chosen, damaged = self._choose(step) if processes.is_first() else (None, {})
        chosen = processes.from_first(-1 if chosen is None else chosen)
        if chosen < 0:
            raise WorldError(self._explain_none(step, damaged))
        stored = self.arrays(chosen)
        held = [prefix for prefix in prefixes if any(name.startswith(f"{prefix}.") for name in stored)]
        prefix = next(iter([*held, *prefixes]), "")
        wanted = {name: _placed(leaf) for name, leaf in tree_names.flatten(abstract, prefix).items()}
        path = self.directory / str(chosen)
        if different := tree_names.differences(stored, wanted, part=bool(prefix)):
            # For a difference orbax's own message only names a missing file.
            few = different[:_FEW] + [f"{len(different) - _FEW} more"] * (len(different) > _FEW)
            raise WorldError(f"checkpoint = {path}: expected a checkpoint of this model; {'; '.join(few)}")
        loaded = _load(path, wanted, part=bool(prefix))
        if self._writes:
            self._trusted.add(chosen)
            if processes.is_first():
                self._set_aside(damaged)
        return chosen, tree_names.unflatten(abstract, loaded, prefix)

    def _choose(self, step: int | None) -> tuple[int | None, dict[int, list[str]]]:
        """The newest intact step (or `step`, if intact), and the problems of each damaged one that was skipped."""
        damaged: dict[int, list[str]] = {}
        for candidate in reversed(self.steps()):
            if step is not None and candidate != step:
                continue
            found = checksums.problems(self.directory / str(candidate))
            if not found:
                return candidate, damaged
            if not (self.directory / str(candidate)).is_dir():
                continue  # its run, which is still training, has just deleted it
            damaged[candidate] = found
            if step is None:  # else an error says it
                warn(f"checkpoint {candidate} in {self.directory} is damaged: {'; '.join(found)}")
        return None, damaged

    def _explain_none(self, step: int | None, damaged: dict[int, list[str]]) -> str:
        if step is not None and step not in damaged:
            return f"step = {step}: expected {self._describe_steps()}"
        reasons = "; ".join(f"{s}: {problem}" for s, found in damaged.items() for problem in found)
        reasons = reasons or ("empty" if processes.is_first() else "see process 0")
        others = [str(other) for other in self.steps() if other not in damaged]
        if step is not None and others:
            path = self.directory / str(step)
            return (
                f"checkpoint = {path}: expected an intact one ({reasons}); --step=N takes another: {', '.join(others)}"
            )
        return f"checkpoints = {self.directory}: expected an intact checkpoint, and none is left ({reasons})"

    # What only the writer's process 0 does

    def _set_aside(self, damaged: dict[int, list[str]]) -> None:
        for step in damaged:
            self._rename(step, "damaged")

    def _rename(self, step: int, suffix: str) -> None:
        aside = self.directory / f"{step}.{suffix}"
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(self.directory / str(step), aside)
        note(f"checkpoint {step} is kept as {aside.name}, for inspection")

    def _publish(self, incoming: pathlib.Path, step: int) -> None:
        """Renames a complete checkpoint to its step, then deletes the ones that need not be kept."""
        if (self.directory / str(step)).exists():
            self._discard(step)  # it belongs to a run that this one does not continue
        os.rename(incoming, self.directory / str(step))
        files.sync_folder(self.directory)
        assert self._keep_last is not None
        newest = self.steps()[-self._keep_last :]
        for old in self.steps():
            if old not in newest and old != step and not self._keeps(old):
                self._discard(old)

    def _report(self, error: Exception, step: int) -> None:
        latest = self.latest_step()
        kept = "there is no earlier one" if latest is None else f"the newest complete one is {latest}"
        warn(f"CHECKPOINT {step} WAS NOT SAVED to {self.directory} ({first_line(error)}); {kept}")

    def _discard(self, step: int) -> None:
        # Renamed first: an interrupted deletion must not leave a part of a checkpoint under its step's name.
        trash = self.directory / _TRASH
        trash.mkdir(exist_ok=True)
        os.rename(self.directory / str(step), trash / str(step))
        shutil.rmtree(trash, ignore_errors=True)


def _load(path: pathlib.Path, wanted: dict[str, jax.ShapeDtypeStruct], *, part: bool) -> dict[str, jax.Array]:
    """The arrays by name, each with the dtype and the sharding of its entry in `wanted`."""
    context = ocp.Context()
    context.pytree.loading.partial_load = part
    try:
        with context, logs.of_the_program():
            return ocp.load_checkpointables(str(path), {ITEM: wanted})[ITEM]
    except Exception as error:
        # Its checksums are right, so it is not damaged, and an older checkpoint would fail in the same way.
        raise WorldError(f"checkpoint = {path}: expected one that orbax can load ({first_line(error)})") from error


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
