"""Timing several programs that take turns, for the scripts that compare them."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax

from dfm_jax.benchmark.timing import MOST_CALLS, REPEAT


def interleaved(programs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, processor) seconds of one call, for each program and repeat, after one warm-up call of each.

    On an accelerator a repeat queues as many calls as last REPEAT seconds and waits for the last: its wall time is then
    the device's, and processor time is the host's, which says nothing. On a processor a repeat is one call.
    """
    calls = {}
    for name, program in programs.items():
        jax.block_until_ready(program())
        calls[name] = 1
        if jax.default_backend() != "cpu":
            calls[name] = max(1, min(MOST_CALLS, math.ceil(REPEAT / timed(program, 1)[0])))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            times[name].append(timed(program, calls[name]))
    return times


def timed(program: Callable[[], Any], calls: int) -> tuple[float, float]:
    """(wall, processor) seconds of one of `calls` calls, queued behind each other."""
    wall, processor = time.perf_counter(), time.process_time()
    results = None
    for _ in range(calls):
        results = program()
    jax.block_until_ready(results)
    return (time.perf_counter() - wall) / calls, (time.process_time() - processor) / calls
