"""Full bidirectional attention, one function and its choice of implementation.

- `operation`: `attention` and `why_not`, which says what an implementation needs
- `xla`: the definition; `cudnn`: NVIDIA's library
- `flash`: our own in Pallas; `tiles` is its arithmetic, driven by `flash_gpu` and by `flash_interpreted`
- `rotary`: rotary embedding
"""

from . import rotary
from .operation import IMPLEMENTATIONS, attention, why_not
from .tiles import Blocks

__all__ = ["IMPLEMENTATIONS", "Blocks", "attention", "rotary", "why_not"]
