"""The folder `configs/` of the repository; an installation has that folder here, in place of this file."""

import pathlib
import sys

_ROOT = str(pathlib.Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:  # an editable installation, called from another folder
    sys.path.insert(0, _ROOT)

from configs import base  # noqa: E402

__all__ = ["base"]
