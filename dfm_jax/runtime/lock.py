"""One process at a time works in a folder, also where the file system has no locks."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import secrets
import shlex
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import IO, Any

from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.terminal import note

# What flock raises where there are none: Lustre without -o flock, NFS without its lock daemon, some FUSE.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
BEAT = 20.0  # seconds between the signs of life of a guard file
# A guard of another machine without a sign of life for so many seconds is a dead process's. A network's file system may
# show a change a minute late.
SILENCE = 120.0
POLL = 1.0

_held: weakref.WeakSet["Lock"] = weakref.WeakSet()
_said: set[str] = set()


class HeldError(Exception):
    """Another process has the lock; the text names it and says how to go on."""


class Lock:
    """A lock on `path`: the kernel's (`flock`), which goes with the process that holds it, however that ends.

    The file stays: were it deleted, two processes could hold a lock, on the old and on a new one. It only says who the
    holder is. Where the file system has no locks, a `Guard` takes their place; this is said once in a process.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._file: IO[str] | None = None
        self._guard: Guard | None = None

    def acquire(self, *, wait: bool) -> None:
        """Raises HeldError where another process has it and `wait` is false, OSError where no file can be written."""
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115  open while the lock is held
        guard = Guard(self.path.with_name(f"{self.path.name}.guard"))
        try:
            locks = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise HeldError(f"{_named(_last(file))} holds it") from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                locks = False
                _say_once(
                    "locks",
                    f"{self.path.parent}: its file system has no locks ({error.strerror}); a file with this process's "
                    f"name guards it instead: {guard.path.name}",
                )
            # A machine that has locks keeps away from a guard of one that has none.
            if not locks or guard.path.exists():
                guard.acquire(wait=wait)
                self._guard = guard
            file.truncate(0)
            file.write(json.dumps(_this_process()) + "\n")
            file.flush()
        except BaseException:
            file.close()
            raise
        self._file = file
        _held.add(self)

    def release(self) -> None:
        if self._guard is not None:
            self._guard.release()
            self._guard = None
        if self._file is not None:
            self._file.close()
            self._file = None
            _held.discard(self)


class Guard:
    """A file whose existence is the lock, and whose holder proves every `BEAT` seconds that it lives.

    A guard is stale, and taken over, when its process ran on this machine and is gone, or when another machine's has
    given no sign of life for `SILENCE` seconds of watching (no clocks are compared).
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._content = (json.dumps(_this_process() | {"token": secrets.token_hex(8)}) + "\n").encode()
        self._owner = os.getpid()
        self._ended, self._at_file = threading.Event(), threading.Lock()

    def acquire(self, *, wait: bool) -> None:
        """Raises HeldError or OSError, see `Lock.acquire`."""
        while not self._create():
            content = self._read()
            if content is None:
                continue
            holder = _parsed(content)
            if self._is_gone(holder, content):
                self._remove(content)
            elif wait:
                time.sleep(POLL)
            else:
                raise HeldError(f"{_named(holder)} holds it (if that has ended, remove {self.path})")
        threading.Thread(target=self._beat, name="guard", daemon=True).start()

    def release(self) -> None:
        """Removes the file, unless this is a forked child of its holder."""
        if os.getpid() != self._owner:
            return
        with self._at_file:
            self._ended.set()
            if self._read() == self._content:
                with contextlib.suppress(OSError):
                    self.path.unlink()

    def _create(self) -> bool:
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with open(handle, "wb") as file:
            file.write(self._content)
        return True

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except OSError:
            return None

    def _is_gone(self, holder: dict[str, Any], content: bytes) -> bool:
        if holder.get("system") == _system():
            return _started(holder.get("pid")) != holder.get("started")
        _say_once(str(self.path), f"{self.path}: waits up to {SILENCE:.0f} s for a sign of life of {_named(holder)}")
        first, end = self._stamp(), time.monotonic() + SILENCE
        while time.monotonic() < end:
            time.sleep(POLL)
            if (stamp := self._stamp()) != first:
                return stamp is None
        return self._read() == content

    def _stamp(self) -> int | None:
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return None

    def _remove(self, stale: bytes) -> None:
        # While another's guard is aside a third process could make its own: nothing is moved that is known to be new.
        if self._read() != stale:
            return
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if aside.read_bytes() != stale:  # another process was quicker, and this is its guard
                os.rename(aside, self.path)
                return
            aside.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._at_file:
                if self._ended.is_set() or self._renewed():
                    continue
            # This process was stopped for minutes, or its guard was removed by hand.
            line = f"error: {self.path}: another process has taken the folder; expected one at a time\n"
            os.write(2, line.encode("utf-8", "replace"))
            os._exit(1)

    def _renewed(self) -> bool:
        """Gives the file a new time; False where it is another's by now."""
        try:
            with open(self.path, "r+b") as file:
                if file.read() != self._content:
                    return False
                file.seek(0)
                file.write(self._content)  # the same bytes: a new time, on every file system
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                return self._create()
        except OSError:
            pass  # it may be better at the next beat
        return True


class RunLock:
    """Holds `workdir/run.lock` while the context is open; a second holder is refused.

    Of several processes of one run only process 0 takes the lock; for the others this is a no-op.

    Raises (on entering):
      WorldError: another process holds the lock; the line names it.
    """

    def __init__(self, workdir: str | os.PathLike, *, process_index: int = 0):
        self._lock = Lock(pathlib.Path(workdir) / "run.lock")
        self._takes_lock = process_index == 0

    def __enter__(self) -> "RunLock":
        if not self._takes_lock:
            return self
        folder = self._lock.path.parent
        try:
            self._lock.acquire(wait=False)
        except HeldError as held:
            raise WorldError(
                f"workdir = {folder}: expected a folder that no other run is using; {held}; wait for it, stop it, or "
                "give another --workdir"
            ) from None
        except OSError as error:
            raise WorldError(
                f"workdir = {folder}: {error.strerror}; expected a folder that can be written to"
            ) from None
        return self

    def __exit__(self, *exception) -> None:
        self._lock.release()


@contextlib.contextmanager
def waiting(path: str | os.PathLike) -> Iterator[None]:
    """Holds a lock on `path` while the context is open; waits while another process has it. OSError, see `Lock`."""
    lock = Lock(path)
    lock.acquire(wait=True)
    try:
        yield
    finally:
        lock.release()


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "system": _system(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.argv),
    }


def _system() -> str:
    """Where process numbers mean the same: this start of this machine, and the container if there is one."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: Any) -> str | None:
    """When process `pid` of this system began (a number is given again to another one); None where it is gone."""
    try:
        fields = pathlib.Path(f"/proc/{int(pid)}/stat").read_text(encoding="utf-8", errors="replace")
        # After the name, which may hold spaces and brackets: the state, and 19 fields later the time of the start.
        state, *rest = fields.rpartition(")")[2].split()
        return None if state in ("Z", "X") else rest[18]
    except (OSError, ValueError, TypeError, IndexError):
        pass
    if os.path.exists("/proc/self/stat"):
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "running"
    except (OSError, TypeError):
        return None
    return "running"


def _last(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    return _parsed(file.readline().encode("utf-8", "replace"))


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except (ValueError, RecursionError):
        return {}  # it has taken the lock and not yet written its name
    return holder if isinstance(holder, dict) else {}


def _named(holder: dict[str, Any]) -> str:
    if not {"pid", "host", "since", "command"} <= holder.keys():
        return "another process"
    return f"process {holder['pid']} on {holder['host']} (since {holder['since']}: {holder['command']})"


def _say_once(what: str, line: str) -> None:
    if what not in _said:
        _said.add(what)
        note(line)


def _release_in_child() -> None:
    """A forked child shares the lock: without this it would keep a dead parent's run locked."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
