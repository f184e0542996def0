"""The folder `configs/` of the repository; an installation has that folder here, in place of this file."""

import importlib
import importlib.util
import pathlib
import sys
from types import ModuleType

_ROOT = str(pathlib.Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:  # an editable installation, called from another folder
    sys.path.insert(0, _ROOT)

from configs import base, published  # noqa: E402

__all__ = ["base", "published"]


def __getattr__(name: str) -> ModuleType:
    """The other experiments, when they are asked for: `from dfm_jax.configs import small`."""
    if name.startswith("_") or importlib.util.find_spec(f"configs.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"configs.{name}")
