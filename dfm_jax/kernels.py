"""The folder `kernels/` of the repository; an installation has that folder here, in place of this file.

So that an installation has no top-level package `kernels`, which is the name of another project.
"""

import pathlib
import sys

_ROOT = str(pathlib.Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:  # an editable installation, called from another folder
    sys.path.insert(0, _ROOT)

from kernels import attention, vocab  # noqa: E402

__all__ = ["attention", "vocab"]
