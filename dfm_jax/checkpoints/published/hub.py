"""Folders of the Hugging Face hub, in and out, by the library `huggingface_hub`."""

import pathlib
import re

from dfm_jax.checkpoints.published.folder import WANTED
from dfm_jax.data import repositories
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
    """The folder of a repository on this disk. Raises as `repositories.fetch`, UsageError for what is no name too."""
    name = text.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{field} = {text}: expected OWNER/NAME of the hub, or a folder")
    return repositories.fetch(name, WANTED, f"{field} = {text}")


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
