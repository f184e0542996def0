"""What a program is compiled for: a chip, described by a text file, and how many of them in how many nodes."""

import dataclasses
import importlib.resources
import pathlib
import re

from dfm_jax.runtime.errors import UsageError

FIGURES = ("bfloat16_flops_per_second", "nvlink_bytes_per_second", "network_bytes_per_second", "gpus_per_node")
FORM = "CHIP:GPUS or CHIP:NODESxGPUS, such as h100:8 or h100:2x8"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One GPU. Figures are per second and, for links, per direction; None where the description has no such line."""

    name: str
    description: str  # GpuTargetConfigProto in text form, for XLA
    compute_capability: tuple[int, int]  # which instructions it has: (8, 0) A100, (9, 0) H100, (10, 0) B200
    memory: int  # bytes on the card
    memory_bandwidth: float  # bytes
    peak: float | None  # dense bfloat16 operations
    nvlink: float | None  # bytes to the other GPUs of the node
    network: float | None  # bytes to other nodes, one GPU's share
    per_node: int | None  # GPUs that NVLink joins


@dataclasses.dataclass(frozen=True)
class Target:
    """`nodes` machines with `per_node` of the chip each; devices are numbered node by node."""

    chip: Chip
    nodes: int
    per_node: int

    @property
    def num_devices(self) -> int:
        return self.nodes * self.per_node

    @property
    def topology(self) -> str:
        """As XLA wants it: partitions x hosts x GPUs per host."""
        return f"1x{self.nodes}x{self.per_node}"

    def describe(self) -> str:
        shape = f"{self.per_node}" if self.nodes == 1 else f"{self.nodes}x{self.per_node}"
        return f"{self.chip.name}:{shape}"


def parse(text: str | None) -> Target:
    """`h100:8`, `h100:2x8`, `path/to/card.txtpb:8`; UsageError otherwise."""
    if not text:
        raise UsageError(f"target = (missing): expected {FORM}, of {', '.join(known())}")
    name, colon, shape = text.rpartition(":")
    if not colon:
        name, shape = text, "1"
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", shape)
    if match is None:
        raise UsageError(f"target = {text}: expected {FORM}")
    chip = load(name, text)
    nodes, per_node = int(match[1] or 1), int(match[2])
    if chip.per_node and per_node > chip.per_node:
        raise UsageError(
            f"target = {text}: expected at most {chip.per_node} GPUs of {chip.name} in a node, and NODESxGPUS for more"
        )
    return Target(chip, nodes, per_node)


def known() -> list[str]:
    """Names of the chips whose descriptions come with the package."""
    return sorted(p.name.removesuffix(".txtpb") for p in _shipped().iterdir() if p.name.endswith(".txtpb"))


def load(name: str, target: str | None = None) -> Chip:
    """The chip called `name`, or described by the file `name`; UsageError where it is neither."""
    target = target or name
    if name in known():
        return read(name, (_shipped() / f"{name}.txtpb").read_text(encoding="utf-8"))
    file = pathlib.Path(name)
    if not file.is_file():
        raise UsageError(
            f"target = {target}: expected one of the chips {', '.join(known())}, or the path of a description"
        )
    try:
        return read(file.stem, file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"target = {target}: expected a text file; {name} is none") from error


def read(name: str, text: str) -> Chip:
    """Parses a description; UsageError names the line that is missing or wrong."""
    if text.count("{") != text.count("}") or "gpu_device_info" not in text:
        raise UsageError(f"target = {name}: expected a GpuTargetConfigProto in text form, with its gpu_device_info")

    def field(key: str) -> float:
        match = re.search(rf"^\s*{key}:\s*([\d.eE+]+)\s*$", text, re.MULTILINE)
        if match is None:
            raise UsageError(f"target = {name}: expected a description with a line '{key}: NUMBER'")
        return float(match[1])

    capability = re.search(r"^\s*cuda_compute_capability\s*\{([^}]*)\}", text, re.MULTILINE)
    numbers = dict(re.findall(r"\b(major|minor):\s*(\d+)", capability[1] if capability else ""))
    if "major" not in numbers:
        raise UsageError(
            f"target = {name}: expected a description with a line 'cuda_compute_capability {{ major: 9 }}'"
        )
    figures: dict[str, float] = {}
    for line in re.findall(r"^#\s*figure:(.*)$", text, re.MULTILINE):
        words = line.split()
        try:
            key, value = words[0], float(words[1])
        except (IndexError, ValueError) as error:
            raise UsageError(f"target = {name}: expected '# figure: NAME NUMBER', not '{line.strip()}'") from error
        if key not in FIGURES or value <= 0:
            raise UsageError(f"target = {name}: expected {', '.join(FIGURES)}, above 0, not '{line.strip()}'")
        figures[key] = value
    per_node = figures.get("gpus_per_node")
    return Chip(
        name=name,
        description=text,
        compute_capability=(int(numbers["major"]), int(numbers.get("minor", 0))),
        memory=int(field("device_memory_size")),
        memory_bandwidth=field("memory_bandwidth"),
        peak=figures.get("bfloat16_flops_per_second"),
        nvlink=figures.get("nvlink_bytes_per_second"),
        network=figures.get("network_bytes_per_second"),
        per_node=None if per_node is None else int(per_node),
    )


def _shipped():
    return importlib.resources.files("dfm_jax.planning") / "chips"
