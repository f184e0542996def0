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


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure: its median and quartiles. `better` is 'higher' or 'lower'."""

    benchmark: str
    what: str
    unit: str
    median: float
    low: float  # quartile
    high: float
    samples: int
    first: float | None = None  # seconds of the warm-up call, where there was one
    note: str = ""


def per_second(benchmark: str, what: str, amount: float, timing: Timing, unit: str, note: str = "") -> Row:
    """`amount` of something per call, as a rate."""
    return from_timing(benchmark, what, timing, unit, lambda seconds: amount / seconds, note)


def from_timing(
    benchmark: str, what: str, timing: Timing, unit: str, convert: Callable[[float], float], note: str = ""
) -> Row:
    """A figure of each call's seconds."""
    low, high = sorted((convert(timing.quantile(0.25)), convert(timing.quantile(0.75))))
    return Row(benchmark, what, unit, convert(timing.median), low, high, len(timing.samples), timing.first, note)


def single(benchmark: str, what: str, value: float, unit: str, note: str = "") -> Row:
    """A figure that is not repeated."""
    return Row(benchmark, what, unit, value, value, value, 1, None, note)


def machine() -> dict[str, Any]:
    """What the figures depend on besides the program."""
    devices = jax.devices()
    return {
        "devices": [f"{len(devices)} x {devices[0].device_kind}", devices[0].platform],
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
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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
        "Median of the repeats after one warm-up call, and quartiles.",
        "",
        "| benchmark | what | median | quartiles | unit | repeats | first call | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{number(row.low)} to {number(row.high)}" if row.samples > 1 else ""
        first = f"{number(row.first)} s" if row.first is not None else ""
        cells = (row.benchmark, row.what, number(row.median), spread, row.unit, str(row.samples), first, row.note)
        lines.append("| " + " | ".join(cells) + " |")
    if left_out:
        lines += ["", "Not run:", "", *(f"- {name}: {why}" for name, why in left_out.items())]
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
