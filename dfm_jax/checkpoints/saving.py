"""One save in the background: orbax writes the arrays, then process 0 adds checksums and renames the folder."""

import logging
import pathlib
import shutil
import threading
from collections.abc import Callable
from typing import Any

from dfm_jax.checkpoints import checksums
from dfm_jax.runtime import logs, processes

with logs.of_the_program():
    from orbax.checkpoint import v1 as ocp

ITEM = "state"  # what orbax calls the saved tree
_NO_ROOM = "No space left on device"


class Save:
    """Writes `arrays` to `incoming` in the background. Creating the object begins the save; `join` waits for it.

    Args:
      incoming: the folder that orbax creates.
      step: updates applied.
      arrays: the arrays by their flat names.
      metadata: a JSON value stored beside them.
      publish: called with `incoming` in the background, on process 0, when the folder is complete.
      failed: called with the error, in the thread where it occurred. It does not stop the program.
    """

    def __init__(
        self,
        incoming: pathlib.Path,
        step: int,
        arrays: dict[str, Any],
        metadata: dict[str, Any] | None,
        *,
        publish: Callable[[pathlib.Path], None],
        failed: Callable[[Exception], None],
    ):
        self.step = step
        self.succeeded = False
        self._incoming, self._publish, self._failed = incoming, publish, failed
        self._thread: threading.Thread | None = None
        _LOG.addFilter(_is_told_otherwise)
        self._handler = logs.hold()
        try:
            if processes.is_first():
                incoming.parent.mkdir(exist_ok=True)
            response = ocp.save_checkpointables_async(
                str(incoming), {ITEM: arrays}, overwrite=True, custom_metadata=metadata or {}
            )
        except OSError as error:
            self._give_up(error)
            return
        # Not a daemon thread: a program waits for its last checkpoint before it ends.
        self._thread = threading.Thread(target=self._finish, args=(response,), name=f"checkpoint {step}")
        self._thread.start()

    def join(self) -> None:
        """Waits until the checkpoint is complete or has failed."""
        if self._thread is not None:
            self._thread.join()
        _LOG.removeFilter(_is_told_otherwise)
        logs.release(self._handler)

    def _finish(self, response: ocp.AsyncResponse[None]) -> None:
        try:
            response.result()
            if processes.is_first():
                checksums.write(self._incoming)
                self._publish(self._incoming)
            self.succeeded = True
        except Exception as error:  # no error of one checkpoint may stop the training
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._failed(error)
        if processes.is_first():
            shutil.rmtree(self._incoming.parent, ignore_errors=True)  # frees the space on a full disk


_LOG = logging.getLogger("absl")  # orbax logs here


def _is_told_otherwise(record: logging.LogRecord) -> bool:
    """False for the log of an error in one of orbax's threads, as `response.result()` raises the same error."""
    return "orbax" not in record.pathname or "raised an exception" not in record.getMessage()


def first_line(error: BaseException) -> str:
    """An error in one line. For a full disk, only the reason: orbax's own message lists its files."""
    if _NO_ROOM in str(error):
        return f"OSError: {_NO_ROOM}"
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__
