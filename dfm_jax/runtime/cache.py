"""Compiled programs, kept in a folder between starts: a run that is queued again does not compile again.

jax reads and writes the entries; this module chooses the folder, keeps it below a size, and makes each entry appear
whole. jax's own size limit takes a file lock, which some file systems lack, and its entries are written in place, so
that a kill in the middle leaves one that fails at every later start.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import tempfile
import time
from typing import Any

import jax

from dfm_jax.runtime.terminal import note

AUTO = "auto"
LIMIT = 4 * 2**30  # bytes kept; a training step for GPUs takes tens of megabytes
SHORTEST = 0.2  # seconds of compilation from which a program is kept
ABANDONED = 86400  # seconds after which a temporary file belongs to no process any more
_ENTRY, _TEMPORARY = "-cache", ".tmp"


def use(setting: str, *, only_if_none: bool = False, limit: int = LIMIT) -> pathlib.Path | None:
    """Keeps what this process compiles from now on, as the field `training.compilation_cache` says.

    setting: 'auto' is the user's cache folder (`default_folder`), unless a folder was already set with
    JAX_COMPILATION_CACHE_DIR or `jax.config`, which then stays as it is; '' is no cache; anything else is a folder.
    only_if_none: a cache that this process has, or has chosen not to have, is left alone; for a library's calls.
    limit: bytes that stay when old entries are removed, which happens here and at no other time.

    Returns the folder, or None where nothing is kept or it was set before. Never raises for what the disk does: a
    folder that cannot be used is a note, and the programs are compiled.
    """
    earlier = _config.jax_compilation_cache_dir
    if only_if_none and (earlier or _chosen or setting == ""):
        return None
    _chosen.add(setting)
    if setting == "":
        jax.config.update("jax_compilation_cache_dir", None)
        _forget()
        return None
    if setting == AUTO and earlier and not _is_ours(earlier):
        return None
    try:
        base = default_folder() if setting == AUTO else pathlib.Path(setting).expanduser().absolute()
        folder = base / machine()
        # Entries are programs that will be run: what others could write here, they could run as this user.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.listdir(folder)
    except (OSError, RuntimeError) as error:
        _note(f"nothing is kept ({_reason(error)}); choose a folder with --config.training.compilation_cache=PATH")
        return None
    if jax.process_index() == 0:
        prune(base, limit=limit)
    if earlier != str(folder):
        _forget()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
        _install()
    return folder


def default_folder() -> pathlib.Path:
    """`$XDG_CACHE_HOME/dfm_jax/compiled`, else `~/.cache/dfm_jax/compiled`. RuntimeError where there is no home."""
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # By the XDG specification a relative path there is to be ignored.
    root = pathlib.Path(xdg) if os.path.isabs(xdg) else pathlib.Path("~/.cache").expanduser()
    return root / "dfm_jax" / "compiled"


def machine() -> str:
    """A folder's name for the kind of processor: machine code for one must not be run on another.

    Home folders are shared between unlike machines, and jax does not tell their processors apart.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine() or 'unknown'}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def prune(folder: pathlib.Path, *, limit: int) -> None:
    """Removes the files under `folder` that were used longest ago, until at most `limit` bytes are left.

    Other processes may read, write and prune at the same time: a file that is gone is no error, and one that is open
    stays readable.
    """
    kept: list[tuple[float, int, str]] = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            try:
                stat = os.stat(path)
                if name.endswith(_TEMPORARY) and time.time() - stat.st_mtime > ABANDONED:
                    os.unlink(path)
                    continue
            except OSError:
                continue
            kept.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= limit:
            return
        try:
            os.unlink(path)
        except OSError:
            continue
        total -= size


class Entries:
    """What jax asks of a cache: `get` and `put` of bytes by key. Each entry is a file that appears whole."""

    def __init__(self, folder: str):
        self._path = pathlib.Path(folder)

    def get(self, key: str) -> bytes | None:
        """The entry, or None. Its time is set to now, so that pruning leaves it."""
        file = self._path / (key + _ENTRY)
        try:
            value = file.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # a folder that is only read
            os.utime(file)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Adds or replaces an entry; a disk that is full or read-only is one note."""
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(dir=self._path, prefix=f".{key[:32]}.", suffix=_TEMPORARY)
            with os.fdopen(handle, "wb") as file:
                file.write(value)
            os.replace(temporary, self._path / (key + _ENTRY))
        except OSError as error:
            if temporary is not None:
                pathlib.Path(temporary).unlink(missing_ok=True)
            _note(f"{self._path}: programs are not kept ({_reason(error)})")


_config: Any = jax.config
_ours: set[str] = set()  # folders that jax was told to use from here
_chosen: set[str] = set()  # settings that this process was given
_said: set[str] = set()


def _is_ours(folder: str) -> bool:
    return folder in _ours


def _install() -> None:
    """Puts `Entries` in the place of jax's file cache for the folder that is set now.

    jax has no public way to do so. Where another version of it lacks these names, its own entries are used: the same
    files, not written atomically.
    """
    folder = _config.jax_compilation_cache_dir
    _ours.add(folder)
    try:
        from jax._src import compilation_cache

        make = compilation_cache.get_file_cache
    except (ImportError, AttributeError):
        return
    if getattr(make, "is_dfm_jax", False):
        return

    def get_file_cache(path: str):
        return (Entries(path), path) if _is_ours(path) else make(path)

    get_file_cache.is_dfm_jax = True  # pyright: ignore[reportFunctionMemberAccess]
    compilation_cache.get_file_cache = get_file_cache  # pyright: ignore[reportAttributeAccessIssue]


def _forget() -> None:
    """Lets jax look again at where its cache is: it does so once, at its first compilation."""
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _note(line: str) -> None:
    if line not in _said and jax.process_index() == 0:
        _said.add(line)
        note(f"compilation cache: {line}")
