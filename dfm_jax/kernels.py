"""The folder `kernels/` of the repository; an installation has that folder here, in place of this file.

So that an installation has no top-level package `kernels`, which is the name of another project. In a checkout
`dfm_jax.kernels` is `kernels` itself, and `dfm_jax.kernels.x` is `kernels.x`: one module object under two names.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import sys

_ROOT = str(pathlib.Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:  # an editable installation, called from another folder
    sys.path.insert(0, _ROOT)

import kernels  # noqa: E402
from kernels import attention, target, vocab_head  # noqa: E402

__all__ = ["attention", "target", "vocab_head"]


class _OneModule(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers `import dfm_jax.kernels.x` with the module `kernels.x`, which would be loaded a second time otherwise."""

    def __init__(self):
        self._own: dict[str, importlib.machinery.ModuleSpec | None] = {}

    def find_spec(self, fullname, path=None, target=None):
        inside = fullname.startswith(f"{__name__}.")
        return importlib.util.spec_from_loader(fullname, self) if inside else None

    def create_module(self, spec):
        module = importlib.import_module(spec.name.removeprefix("dfm_jax."))
        self._own[module.__name__] = module.__spec__
        return module

    def exec_module(self, module):
        # The import system has written the other name into the module.
        module.__spec__ = self._own.pop(module.__name__)


sys.meta_path.insert(0, _OneModule())
sys.modules[__name__] = kernels
