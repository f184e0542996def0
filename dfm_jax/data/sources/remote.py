"""Text and prepared shards in object stores and on web servers, through fsspec: gs://, s3://, hf://, https://, ...

A file of text is copied into `data.cache_dir`/remote when its turn comes; the copy goes when all its rows are read. Of
a prepared folder the manifest is copied, and each shard when it is first read; these copies stay. Credentials are those
that the store's own library finds (its environment, its files): a URL that holds some is refused and not repeated.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dfm_jax.data import readers
from dfm_jax.data.manifest import MANIFEST
from dfm_jax.data.rows import Cut, Fault, Item, Rules
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.files import write_atomically
from dfm_jax.runtime.lock import waiting

ORIGIN = "origin.json"  # in the copy of a prepared folder: where its shards are
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_USER = re.compile(r"([a-z][a-z0-9+.-]*)://[^/,]*@", re.IGNORECASE)
_SECRET = re.compile(
    r"([a-z][a-z0-9+.-]*)://[^,]*[?&][^=,]*(?:sig|token|key|secret|passw|credential|auth)[^=,]*=", re.IGNORECASE
)
_EXTRAS = {"gs": "gs", "gcs": "gs", "s3": "s3", "http": "http", "https": "http"}  # protocol -> extra of this package
# What stores say of a file that changes with its contents.
_MARKS = ("etag", "content-md5", "digest", "md5hash", "crc32c", "generation", "blob_id", "oid", "checksum")
_TIMES = ("last-modified", "lastmodified", "last_modified", "updated", "mtime", "modified", "created")


def is_url(where: str) -> bool:
    return _URL.match(where) is not None


def refuse_credentials(spec: str, field: str) -> None:
    """UsageError, which does not repeat them, for credentials in a URL of `spec`."""
    if found := _USER.search(spec) or _SECRET.search(spec):
        raise UsageError(
            f"{field} = {found[1].lower()}://...: it holds credentials: expected a URL without them, and the "
            "credentials where the store's library looks for them (its environment variables or files)"
        )


class Store(NamedTuple):
    """A file system of fsspec, the path of a URL in it, and `FIELD = SPEC` for errors."""

    system: Any
    path: str
    where: str


def opened(url: str, where: str) -> Store:
    """The store of a URL. Nothing is asked. where: `FIELD = SPEC`, for errors.

    Raises UsageError for a URL with credentials in it, and for a protocol that is not known or not installed.
    """
    refuse_credentials(url, where.partition(" = ")[0])
    import fsspec

    protocol = url.partition("://")[0].lower()
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        install = f"pip install 'dfm-jax[{extra}]'" if extra else _line(error)
        raise UsageError(f"{where}: {protocol}:// needs a package that is not installed: expected {install}") from error
    except ValueError as error:
        raise UsageError(f"{where}: {protocol}:// is no store: expected gs, s3, hf or https") from error
    return Store(system, path, where)


@contextlib.contextmanager
def asking(store: Store) -> Iterator[None]:
    """Turns every way in which a store fails into a WorldError of one line."""
    try:
        yield
    except (UsageError, WorldError):
        raise
    except FileNotFoundError as error:
        if _hides_silence(error):
            raise _unreachable(store, error.__cause__ or error) from error
        raise WorldError(f"{store.where}: no such file in the store: expected one that is there") from error
    except PermissionError as error:
        raise WorldError(
            f"{store.where}: the store refuses ({_line(error)}): expected credentials where its library looks for them"
        ) from error
    except Exception as error:  # the stores' libraries have no common class
        raise _unreachable(store, error) from error


def _unreachable(store: Store, error: BaseException) -> WorldError:
    return WorldError(
        f"{store.where}: the store cannot be reached or read ({type(error).__name__}: {_line(error)}): expected one "
        "that answers; what is prepared stays, run again to continue"
    )


def _hides_silence(error: FileNotFoundError) -> bool:
    """Whether a store that does not answer was called a file that is not there, as fsspec's http does."""
    cause = error.__cause__
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError) and not hasattr(cause, "response")


class RemoteFile(NamedTuple):
    """path: in the store. url: for people. mark: changes when the store says that the contents did."""

    path: str
    url: str
    size: int
    mark: str


def find(url: str, where: str) -> list[RemoteFile]:
    """The files of a URL, of a folder (at any depth, of known kinds) or a glob; sorted by name.

    Raises WorldError where there is none, or the store does not answer.
    """
    store = opened(url, where)
    system, path = store.system, store.path
    with asking(store):
        if re.search(r"[*\[]", path):
            _kind(store, re.split(r"[^/]*[*\[]", path)[0])  # where nobody answers a glob finds nothing
            found = [str(name) for name in system.glob(path) if system.isfile(name)]
        elif (kind := _kind(store, path)) == "file":
            found = [path]
        else:
            names = map(str, system.find(path) if kind else ())
            found = [name for name in names if readers.kind_of_name(pathlib.Path(name)) and "/." not in name]
        if not found:
            raise WorldError(f"{where}: no file there: expected {readers.ACCEPTED}")
        return [_described(store, name) for name in sorted(found)]


def _kind(store: Store, path: str) -> str:
    """'file' or 'directory'; '' where there is nothing. `isfile` and `isdir` of fsspec say no where nobody answers."""
    try:
        return store.system.info(path)["type"]
    except FileNotFoundError as error:
        if _hides_silence(error):
            raise
        return ""


def _described(store: Store, path: str) -> RemoteFile:
    info = {str(key).lower(): value for key, value in store.system.info(path).items()}
    marks = [str(info[key]) for key in _MARKS if info.get(key)] or [str(info[key]) for key in _TIMES if info.get(key)]
    size = int(info.get("size") or 0)
    mark = hashlib.sha256(json.dumps([size, marks or path]).encode()).hexdigest()
    return RemoteFile(path, store.system.unstrip_protocol(path), size, mark)


class RemotePart:
    """A file of text in a store."""

    def __init__(self, file: RemoteFile, rules: Rules, where: str, folder: pathlib.Path):
        """folder: for its copy."""
        self.name, self.size = file.url, max(file.size, 1)
        self._file, self._rules, self._where = file, rules, where
        name = pathlib.PurePosixPath(file.path).name
        self._copy = folder / f"{hashlib.sha256(f'{file.url} {file.mark}'.encode()).hexdigest()[:16]}-{name}"
        form = rules.form
        reading = [file.mark, readers.kind_of_name(self._copy), rules.column, rules.documents, rules.flags()]
        reading += [] if form is None else [form.identity]
        self.key = hashlib.sha256(json.dumps(["remote", *reading]).encode()).hexdigest()[:32]
        self._read = 0.0

    def fraction(self) -> float:
        return min(1.0, self._read)

    def rows(self, skip: int, cut: Cut) -> Iterator[Item]:
        copy_file(opened(self._file.url, self._where), self._file.path, self._copy)
        self._read = 0.0
        try:
            for row, fraction in readers.read(self._copy, self._rules, cut, self._where):
                self._read = fraction
                if skip:
                    skip -= 1
                else:
                    yield self._named(row) if isinstance(row, Fault) else row
        finally:  # at a fault too: a file that is mended has another copy
            self._copy.unlink(missing_ok=True)
        self._read = 1.0

    def _named(self, fault: Fault) -> Fault:
        """The fault with the file's own name in place of its copy's."""
        copy, url = str(self._copy), self._file.url
        error = type(fault.error)(str(fault.error).replace(copy, url))
        return Fault(error, fault.place.replace(copy, url), fault.file)


def copy_file(store: Store, path: str, target: pathlib.Path) -> None:
    """Copies a file of the store to `target`, which is whole or not there; a copy that is there stays."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with waiting(target.parent / ".copy.lock"):
        if not target.exists():
            temporary = target.with_name(f".tmp-{target.name}")
            try:
                with asking(store):
                    store.system.get_file(path, str(temporary))
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)


def prepared(url: str, where: str, cache: pathlib.Path) -> pathlib.Path | None:
    """The copy of the prepared folder at a URL, of which only the manifest is copied; None where there is none.

    The newest copy serves where the store does not answer, or has the folder no more.
    """
    if re.search(r"[*\[]", url) or readers.kind_of_name(pathlib.Path(url)):
        return None
    store = opened(url, where)
    try:
        with asking(store):
            path = f"{store.path.rstrip('/')}/{MANIFEST}"
            content = store.system.cat_file(path) if store.system.isfile(path) else None
    except WorldError:
        if (there := mirrored(url, cache)) is None:
            raise
        return there
    if content is None:
        return mirrored(url, cache)
    digest = hashlib.sha256(url.encode() + content).hexdigest()[:16]
    folder = cache / "remote" / f"{pathlib.PurePosixPath(store.path.rstrip('/')).name}-{digest}"
    if not (folder / MANIFEST).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ORIGIN, json.dumps({"url": url}))
        write_atomically(folder / MANIFEST, content)
    return folder


def mirrored(url: str, cache: pathlib.Path) -> pathlib.Path | None:
    """The newest copy of the prepared folder at a URL; None where there is none."""
    found = [file for file in (cache / "remote").glob(f"*/{MANIFEST}") if _origin(file.parent) == url]
    return max(found, key=lambda file: file.stat().st_mtime_ns).parent if found else None


def _origin(folder: pathlib.Path) -> str:
    try:
        return json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def fetcher(folder: pathlib.Path) -> Callable[[str], None] | None:
    """What brings a file of the copy of a prepared folder here; None for any other folder."""
    url = _origin(folder)
    if not url:
        return None

    def fetch(name: str) -> None:
        store = opened(url, f"{folder}, a copy of {url}")
        copy_file(store, f"{store.path.rstrip('/')}/{name}", folder / name)

    return fetch


def _line(error: BaseException) -> str:
    """The first line of a message, without what a URL in it may carry."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return re.sub(r"(://[^\s/?]*?)[^\s/@]*@|\?\S*", r"\1", line)
