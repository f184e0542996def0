"""Repositories of the Hugging Face hub on this disk, by the library `huggingface_hub`: weights and tokenizers."""

import pathlib
from collections.abc import Sequence

from dfm_jax.runtime.errors import UsageError, WorldError


def fetch(
    name: str, patterns: Sequence[str], where: str, *, needs: str = "", cache_first: bool = False
) -> pathlib.Path:
    """The folder of a repository: the hub's newest, or where the hub gives none, what the library's cache holds.

    Args:
        name: OWNER/NAME. patterns: of the files that are wanted. where: `FIELD = VALUE`, for errors.
        needs: a file that must be in it.
        cache_first: what is in the cache is not asked for.

    Raises:
        UsageError: the hub has no such repository, or it needs a login. WorldError: the hub cannot be asked, or `needs`
            is not there.
    """
    import huggingface_hub  # slow to import, and only wanted here

    failure: Exception | None = None
    for cached in (True, False) if cache_first else (False, True):
        try:
            folder = pathlib.Path(
                huggingface_hub.snapshot_download(name, allow_patterns=[*patterns], local_files_only=cached)
            )
        except Exception as error:  # offline, no network, a broken cache: the library's errors have no common class
            failure = failure if cached else error  # that of the cache says less
            continue
        if not needs or (folder / needs).is_file():
            return folder
    raise _told(failure, where, needs) from failure


def _told(failure: Exception | None, where: str, needs: str) -> Exception:
    from huggingface_hub import errors

    if failure is None:
        return WorldError(f"{where}: {needs} is not in the repository: expected one that has it, or a folder")
    if isinstance(failure, errors.GatedRepoError):
        return UsageError(f"{where}: its owner asks for a login first: expected `hf auth login`")
    if isinstance(failure, errors.RepositoryNotFoundError | errors.HFValidationError):
        return UsageError(
            f"{where}: no such folder here, and no such repository on the hub (or it is private): expected a folder, "
            "OWNER/NAME, or `hf auth login` first"
        )
    return WorldError(
        f"{where}: the hub cannot be asked ({type(failure).__name__}), and its cache here has no such repository: "
        "expected a machine with network, or a folder that `hf download OWNER/NAME --local-dir FOLDER` filled on one"
    )
