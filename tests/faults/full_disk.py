"""Saves on a small file system that fills up and empties again: PYTHONPATH=. python tests/faults/full_disk.py FOLDER"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.runtime.errors import WorldError


def make_state(step: int) -> dict:
    noise = np.random.default_rng(step).normal(size=(700, 1000)).astype(np.float32)  # 2.8 MB, which do not compress
    return {"step": jnp.int32(step), "w": jnp.asarray(noise)}


def assert_newest(folder: pathlib.Path, expected: int) -> None:
    step, state = Checkpoints(folder).restore(make_state(0))
    assert step == expected, step
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, make_state(step))


def main() -> None:
    disk = pathlib.Path(sys.argv[1])
    folder = disk / "checkpoints"
    checkpoints = Checkpoints(folder, keep_last=2)
    checkpoints.save(1, make_state(1))
    checkpoints.save(2, make_state(2), block=True)
    filler = disk / "filler"
    filler.write_bytes(bytes(5_500_000))
    checkpoints.save(3, make_state(3))  # in the background: training would go on
    try:
        checkpoints.save(4, make_state(4), block=True)
        raise AssertionError("this disk has room")
    except WorldError:
        pass
    assert checkpoints.steps() == [1, 2]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]  # what failed has given its room back
    assert_newest(folder, 2)
    filler.unlink()
    checkpoints.save(5, make_state(5), block=True)
    assert checkpoints.steps() == [2, 5]
    assert_newest(folder, 5)


if __name__ == "__main__":
    main()
