"""Folders of the Hugging Face hub, in and out, by the library `huggingface_hub`."""

import pathlib
import re

from dfm_jax.checkpoints.published.folder import WANTED
from dfm_jax.runtime.errors import UsageError, WorldError

PREFIX = "hf:"
_NAME = re.compile(r"(?!-)[\w.-]+/[\w.-]+")
_FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".json")


def is_name(text: str) -> bool:
    """Whether `text` means a repository: hf:OWNER/NAME, or OWNER/NAME where there is no such path."""
    if text.startswith(PREFIX):
        return True
    path = pathlib.Path(text)
    return bool(_NAME.fullmatch(text)) and not path.exists() and path.suffix not in _FILES and not path.parent.is_dir()


def is_repository(text: str) -> bool:
    """Whether `text` has the form hf:OWNER/NAME or OWNER/NAME."""
    return bool(_NAME.fullmatch(text.removeprefix(PREFIX)))


def fetch(text: str, field: str = "from") -> pathlib.Path:
    """The folder of a repository on this disk: the hub's newest, or offline what the library's cache holds.

    Raises:
        UsageError: the hub has no such repository, or it needs a login. WorldError: it cannot be asked.
    """
    import huggingface_hub
    from huggingface_hub import errors

    name = text.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{field} = {text}: expected OWNER/NAME of the hub, or a folder")
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(WANTED)))
    except errors.GatedRepoError as error:
        raise UsageError(f"{field} = {text}: its owner asks for a login first: expected `hf auth login`") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UsageError(
            f"{field} = {text}: no such folder here, and no such repository on the hub (or it is private): expected a "
            "folder, OWNER/NAME, or `hf auth login` first"
        ) from error
    except Exception as error:  # offline, no network, a broken cache: the library's errors have no common class
        cached = _cached(name)
        if cached is not None:
            return cached
        raise WorldError(
            f"{field} = {text}: the hub cannot be asked ({type(error).__name__}), and its cache here has no such "
            "repository: expected a machine with network, or a folder"
        ) from error


def _cached(name: str) -> pathlib.Path | None:
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(WANTED), local_files_only=True))
    except Exception:  # no error of its own: the one before is told
        return None


def push(folder: pathlib.Path, name: str, message: str) -> str:
    """Uploads a folder as the repository OWNER/NAME, made where it is not there; its address.

    Raises:
        UsageError: the name is none. WorldError: the hub refuses, or cannot be asked; the folder stays.
    """
    import huggingface_hub

    name = name.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise UsageError(f"push = {name}: expected OWNER/NAME of the hub")
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # no login, no permission, no network: the library's errors have no common class
        line = " ".join(str(error).split())[:200]
        raise WorldError(
            f"push = {name}: the hub did not take it ({type(error).__name__}: {line}); expected a login with write "
            f"access (hf auth login) and network; the folder is whole: {folder}"
        ) from error
    return str(address)
