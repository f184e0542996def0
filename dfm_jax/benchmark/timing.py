"""Timing: the first call apart, then repeats until there are enough, with median and spread.

On an accelerator a call returns as soon as its work is queued, so the clock around one call holds the host's work too.
There a repeat queues several calls, one behind the other on the device's stream, and waits once at its end: from the
second call on, the host's work is hidden behind the device's. How long the host took to queue them is kept, so that a
figure which is the host's after all can be told (`Timing.host_bound`). On a processor a repeat is one call.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

LEAST, MOST = 5, 50  # repeats
ENOUGH = {"cpu": 10.0, "other": 2.0}  # seconds, after which LEAST repeats are enough
REPEAT = 0.3  # seconds that a repeat on an accelerator lasts at least, if MOST_CALLS do
MOST_CALLS = 16  # a repeat queues; XLA's queue holds 32, and a full one would make the host wait
HOST_BOUND = 0.9  # of a repeat spent on queueing


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call. `first` holds what only the first call pays: loading, caches, and compilation if not before.

    samples: of each repeat, its seconds by its calls. calls: that a repeat queues. queueing: the median share of a
    repeat in which the host was still queueing calls, 0 where a repeat is one call.
    """

    first: float
    samples: tuple[float, ...]
    calls: int = 1
    queueing: float = 0.0

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.samples, share))

    @property
    def median(self) -> float:
        return self.quantile(0.5)

    @property
    def host_bound(self) -> bool:
        """Whether the host could not queue calls faster than the device did them: then the time is the host's."""
        return self.calls > 1 and self.queueing > HOST_BOUND


def measure(
    call: Callable[[], Any],
    *,
    least: int = LEAST,
    most: int = MOST,
    enough: float | None = None,
    queued: bool | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times `call` once as warm-up and then in `least` to `most` repeats, which end once `enough` seconds are measured.

    call: starts the work and returns its results, which are waited for. queued: whether repeats queue several calls,
    as many as last REPEAT seconds; None asks the platform. A call must not need the host in the middle.
    """
    on_host = jax.default_backend() == "cpu"
    queued = not on_host if queued is None else queued
    enough = ENOUGH["cpu" if on_host else "other"] if enough is None else enough

    def repeat(calls: int) -> tuple[float, float]:
        """Seconds until all was queued, and until all was done."""
        started = clock()
        results = None
        for _ in range(calls):
            results = call()  # the last ones are dropped: what they hold is free again once it is computed
        queued_by = clock() - started if calls > 1 else 0.0
        jax.block_until_ready(results)
        return queued_by, clock() - started

    first = repeat(1)[1]
    calls = max(1, min(MOST_CALLS, math.ceil(REPEAT / max(repeat(1)[1], 1e-9)))) if queued else 1
    found: list[tuple[float, float]] = []
    while len(found) < least or (len(found) < most and sum(seconds for _, seconds in found) < enough):
        found.append(repeat(calls))
    share = float(np.median([queueing / seconds if seconds else 0.0 for queueing, seconds in found]))
    return Timing(first, tuple(seconds / calls for _, seconds in found), calls, share)
