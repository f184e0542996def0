"""Traffic between devices: what a program sends, over which links, and how long the links need at least."""

import dataclasses
import math
import re

import numpy as np

from dfm_jax.planning.hlo import text as hlo
from dfm_jax.planning.targets import Target

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All executions in one step of one kind over one group size, of one element type."""

    kind: str
    dtype: str
    devices: int  # in each group
    nodes: int  # that each group spans
    count: float  # executions in a step
    bytes: float  # of the whole array, per step: what is reduced, or gathered
    sent: float  # bytes that each device sends, per step
    seconds: float | None  # the slower link's time; None where the chip's figures do not give it
    operations: tuple[str, ...]  # JAX functions that they come from, the largest first


def read(module: hlo.Module, target: Target) -> list[Collective]:
    """The program's collectives, those that send most first."""
    rows: dict[tuple, list[tuple[float, float, str]]] = {}
    for instruction, _, times in module.executed():
        for kind, group, dtype, size, name in _calls(instruction, module, target.num_devices):
            nodes = max(len({device // target.per_node for device in devices}) for devices in group)
            rows.setdefault((kind, dtype, len(group[0]), nodes), []).append((times, size, name))
    found = []
    for (kind, dtype, devices, nodes), calls in rows.items():
        total = sum(times * size for times, size, _ in calls)
        sent = total * share_sent(kind, devices)
        by_size = sorted(calls, key=lambda call: -call[0] * call[1])
        found.append(
            Collective(
                kind=kind,
                dtype=dtype,
                devices=devices,
                nodes=nodes,
                count=sum(times for times, _, _ in calls),
                bytes=total,
                sent=sent,
                seconds=link_seconds(kind, total, devices, nodes, target),
                operations=tuple(dict.fromkeys(name for _, _, name in by_size if name))[:3],
            )
        )
    return sorted(found, key=lambda c: (-c.sent, c.kind, c.dtype))


def seconds_of(instruction: hlo.Instruction, module: hlo.Module, target: Target) -> float:
    """Link time of one execution; the chip's figures must be known."""
    total = 0.0
    for kind, group, _, size, _ in _calls(instruction, module, target.num_devices):
        nodes = max(len({device // target.per_node for device in devices}) for devices in group)
        total += link_seconds(kind, size, len(group[0]), nodes, target) or 0.0
    return total


def share_sent(kind: str, devices: int) -> float:
    """Bytes that each of n devices sends per byte of the whole array, by the best algorithm over plain links.

    all-reduce 2 (n-1)/n, all-gather, reduce-scatter and all-to-all (n-1)/n, a permutation or broadcast 1.
    """
    if devices == 1:
        return 0.0
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (devices - 1) / devices


def link_seconds(kind: str, total: float, devices: int, nodes: int, target: Target) -> float | None:
    """The longer of the times inside nodes, over NVLink, and between them.

    Between nodes a group of g devices a node moves share_sent(nodes) of the array through g network cards.
    """
    chip = target.chip
    if devices == 1:
        return 0.0
    within = devices // nodes
    times = []
    if within > 1:
        if chip.nvlink is None:
            return None
        times.append(total * share_sent(kind, within) / chip.nvlink)
    if nodes > 1:
        if chip.network is None:
            return None
        times.append(total * share_sent(kind, nodes) / (within * chip.network))
    return max(times)


def _calls(instruction: hlo.Instruction, module: hlo.Module, num_devices: int):
    """(kind, groups, dtype, bytes of the whole array, name) of each collective that `instruction` is or starts."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return
    group = replica_groups(instruction, num_devices)
    home = module.home[instruction.name]
    operands = [home[name] for name in instruction.operands if name in home]
    # A start's own type repeats its operands beside its results, so sizes are read from the operands.
    for operand in operands:
        for shape in operand.shapes:
            size = shape.bytes * (len(group[0]) if kind == "all-gather" else 1)
            yield kind, group, shape.dtype, size, instruction.op_name


def replica_groups(instruction: hlo.Instruction, num_devices: int) -> list[tuple[int, ...]]:
    """Device numbers of each group, from any of the forms that XLA prints; all devices where it prints none."""
    text = instruction.attributes
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        pairs = re.findall(r"(\d+),(\d+)", match[1])
        return [(int(a), int(b)) for a, b in pairs if a != b] or [(0,)]
    if match := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return [tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", match[1])]
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, reshape = _numbers(match[1]), _numbers(match[2])
        ids = np.arange(math.prod(reshape)).reshape(reshape)
        ids = ids.transpose(_numbers(match[3])) if match[3] else ids
        return [tuple(row) for row in ids.reshape(shape).tolist()]
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", match[1])}
        return _along(sizes, _device_ids(match[2], math.prod(sizes.values())), match[3])
    if "replica_groups=" in text and "replica_groups={}" not in text:
        raise ValueError(
            f"replica groups in a form that is not known here: {text[text.index('replica_groups=') :][:120]}"
        )
    return [tuple(range(num_devices))]


def _along(sizes: dict[str, int], ids: np.ndarray, chosen: str) -> list[tuple[int, ...]]:
    """Groups of a mesh along the axes in `chosen`: 'a', or 'a':(p)n, its part of n after p parts before it."""
    parts = {
        name: (int(p or 1), int(n or sizes[name]))
        for name, p, n in re.findall(r"'([\w.]+)'(?::\((\d+)\)(\d+))?", chosen)
    }
    dims: list[int] = []
    along: dict[str, int] = {}
    for name, size in sizes.items():
        before, own = parts.get(name, (size, 1))
        along[name] = len(dims) + 1
        dims += [before, own, size // (before * own)]
    wanted = [along[name] for name in parts]
    ids = ids.reshape(dims).transpose([*(i for i in range(len(dims)) if i not in wanted), *wanted])
    return [tuple(row) for row in ids.reshape(-1, math.prod(dims[i] for i in wanted)).tolist()]


def _device_ids(text: str | None, number: int) -> np.ndarray:
    """The devices of a mesh in its order: 0, 1, ... if not said, `[8,8]T(1,0)` reshaped and transposed, or a list."""
    ids = np.arange(number)
    if not text:
        return ids
    if match := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        ids = ids.reshape(_numbers(match[1]))
        return (ids.transpose(_numbers(match[2])) if match[2] else ids).reshape(-1)
    return np.array(_numbers(text))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))
