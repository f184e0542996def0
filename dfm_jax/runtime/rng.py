"""Noise keyed by (seed, step, purpose): the same on every mesh, every process count and after every resume."""

import jax
from jax import Array

# A purpose's number is part of every run's noise: append, never renumber.
PURPOSES = ("init", "time", "source", "path", "coupling", "dropout", "sampling", "likelihood")


def noise_key(seed: int, purpose: str, step: int | Array = 0) -> Array:
    """One typed threefry key for `purpose` at `step` of the run with `seed`.

    `step` may be traced. Draw from it for the global batch: partitionable threefry makes the numbers
    independent of how the result is sharded.
    """
    key = jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))
    return jax.random.fold_in(key, step)
