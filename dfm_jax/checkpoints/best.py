"""Which checkpoint of a run is the best one so far: `checkpoints/best.json`."""

import json
import math
import pathlib
from typing import NamedTuple

from dfm_jax.runtime import files

FILE = "best.json"


class Best(NamedTuple):
    """step: of the checkpoint. loss: its evaluation loss, nats per token."""

    step: int
    loss: float


def read(directory: pathlib.Path) -> Best | None:
    """What the folder of checkpoints says; None where it says nothing that can be read."""
    try:
        given = json.loads((directory / FILE).read_text(encoding="utf-8"))
        best = Best(int(given["step"]), float(given["loss"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return best if math.isfinite(best.loss) else None


def write(directory: pathlib.Path, best: Best) -> None:
    files.write_json_atomically(directory / FILE, best._asdict())
