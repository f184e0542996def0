"""Timing: the first call apart, then repeats until there are enough, with median and spread."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

LEAST, MOST = 5, 50  # repeats
ENOUGH = 10.0  # seconds, after which LEAST repeats are enough


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call. `first` holds what only the first call pays: compilation, caches, autotuning."""

    first: float
    samples: tuple[float, ...]

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.samples, share))

    @property
    def median(self) -> float:
        return self.quantile(0.5)


def measure(
    call: Callable[[], Any],
    *,
    least: int = LEAST,
    most: int = MOST,
    enough: float = ENOUGH,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times `call`, whose result is waited for, once as warm-up and then `least` to `most` times."""

    def once() -> float:
        started = clock()
        jax.block_until_ready(call())
        return clock() - started

    first = once()
    samples: list[float] = []
    while len(samples) < least or (len(samples) < most and sum(samples) < enough):
        samples.append(once())
    return Timing(first, tuple(samples))
