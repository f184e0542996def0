"""One process at a time works in a run's folder."""

import fcntl
import json
import os
import pathlib
import socket
import sys
import time
import weakref
from typing import IO

from dfm_jax.runtime.errors import WorldError

_held: weakref.WeakSet["RunLock"] = weakref.WeakSet()


class RunLock:
    """Holds `workdir/run.lock` while the context is open; a second holder is refused.

    The lock is the kernel's (`flock`), not the file's existence: it goes with the process that holds it,
    however that process ends, so nothing is ever left to clean up. The file only says who the holder is.

    Of several processes of one run only process 0 takes the lock; for the others this is a no-op.

    Raises (on entering):
      WorldError: another process holds the lock; the line names it.
    """

    def __init__(self, workdir: str | os.PathLike, *, process_index: int = 0):
        self.path = pathlib.Path(workdir) / "run.lock"
        self._takes_lock = process_index == 0
        self._file: IO[str] | None = None

    def __enter__(self) -> "RunLock":
        if not self._takes_lock:
            return self
        try:
            file = open(self.path, "a+")
        except OSError as error:
            raise WorldError(
                f"workdir={self.path.parent}: accepted a folder that can be written to ({error.strerror})"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe(file)
            file.close()
            raise WorldError(
                f"workdir={self.path.parent}: accepted a folder that no other run is using; "
                f"{holder} holds it (wait for it, stop it, or give another --workdir)"
            ) from None
        file.truncate(0)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "command": " ".join(sys.argv),
        }
        file.write(json.dumps(holder) + "\n")
        file.flush()
        self._file = file
        _held.add(self)
        return self

    def __exit__(self, *exception) -> None:
        if self._file is not None:
            # The file stays: were it deleted, two processes could hold a lock, on the old and on a new one.
            self._file.close()
            self._file = None
            _held.discard(self)


def _describe(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.readline())
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']}: {holder['command']})"
    except (ValueError, KeyError):
        return "another process"  # it has taken the lock and not yet written its name


def _release_in_child() -> None:
    """A forked child shares the lock: without this it would keep a dead parent's run locked."""
    for lock in list(_held):
        lock.__exit__()


os.register_at_fork(after_in_child=_release_in_child)
