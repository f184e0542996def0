"""What was measured, on what, as JSON and as a Markdown table."""

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Callable
from typing import Any

import jax

from dfm_jax.benchmark.timing import Timing

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain", "tiktoken", "torch")
PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure of the benchmark called `benchmark`: its median and quartiles.

    samples: repeats behind it. calls: calls in each repeat (see `timing`). first: seconds of the warm-up call, where
    there was one. note: what else the figure depends on.
    """

    benchmark: str
    what: str
    unit: str
    median: float
    low: float  # quartile
    high: float
    samples: int
    calls: int = 1
    first: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Missing:
    """What was not measured, and why, in one line."""

    name: str
    reason: str


def in_one_line(error: Exception, most: int = 300) -> str:
    """What went wrong, as a line of a table."""
    text = " ".join(str(error).split()).replace("|", "/")
    return f"{type(error).__name__}: {text[:most]}" if text else type(error).__name__


def per_second(benchmark: str, what: str, amount: float, timing: Timing, unit: str, note: str = "") -> Row:
    """`amount` of something per call, as a rate."""
    return from_timing(benchmark, what, timing, unit, lambda seconds: amount / seconds, note)


def from_timing(
    benchmark: str, what: str, timing: Timing, unit: str, convert: Callable[[float], float], note: str = ""
) -> Row:
    """A figure of each call's seconds."""
    low, high = sorted((convert(timing.quantile(0.25)), convert(timing.quantile(0.75))))
    if timing.host_bound:
        note = f"{note}; the host's time, not the device's: it could not queue calls faster".removeprefix("; ")
    samples = len(timing.samples)
    return Row(benchmark, what, unit, convert(timing.median), low, high, samples, timing.calls, timing.first, note)


def single(benchmark: str, what: str, value: float, unit: str, note: str = "") -> Row:
    """A figure that is not repeated."""
    return Row(benchmark, what, unit, value, value, value, 1, note=note)


def machine() -> dict[str, Any]:
    """What the figures depend on besides the program."""
    devices = jax.devices()
    capability = getattr(devices[0], "compute_capability", None)
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    return {
        "devices": [f"{len(devices)} x {devices[0].device_kind}", devices[0].platform],
        "compute_capability": None if capability is None else str(capability),
        "pool_bytes": memory,
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions(),
    }


def processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES + PLUGINS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def used_bytes() -> int | None:
    """Largest number of bytes in use in JAX's pool since this process began, of its first device; None on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def markdown(rows: list[Row], about: dict[str, Any], title: str, left_out: dict[str, str]) -> str:
    """The table, the machine above it and what did not run below it."""
    lines = [
        f"# {title}",
        "",
        f"{about['devices'][0]} ({about['devices'][1]}), {about['processor']}, {about['cores']} cores "
        f"(load {about['load']} at the start), Python {about['python']}, "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        + ".",
        "",
        "Median of the repeats after one warm-up call, and quartiles. Repeats `5 x 8` are five of eight calls each, "
        "queued on the device and waited for once, so that their time is the device's.",
        "",
        "| benchmark | what | median | quartiles | unit | repeats | first call | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{number(row.low)} to {number(row.high)}" if row.samples > 1 else ""
        first = f"{number(row.first)} s" if row.first is not None else ""
        repeats = str(row.samples) if row.calls == 1 else f"{row.samples} x {row.calls}"
        cells = (row.benchmark, row.what, number(row.median), spread, row.unit, repeats, first, row.note)
        lines.append("| " + " | ".join(cells) + " |")
    if left_out:
        lines += ["", "Not measured:", "", *(f"- {name}: {why}" for name, why in left_out.items())]
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
