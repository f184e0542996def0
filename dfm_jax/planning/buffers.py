"""The compiler's own account of memory: which value sits where, read from its buffer assignment's text."""

import dataclasses
import pathlib
import re

from dfm_jax.planning import hlo


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One place in a device's memory, described by the largest value that ever lives there."""

    bytes: int
    shape: str
    kind: str  # 'argument' | 'output' | 'temporary' | 'constant'
    instruction: str  # the HLO instruction that makes the value
    operation: str  # the JAX functions that it comes from
    source: str  # file:line of the call


def read(folder: pathlib.Path, module: hlo.Module) -> list[Buffer]:
    """All buffers of the program whose dump is in `folder`, largest first; empty if there is no dump."""
    files = sorted(folder.glob("*gpu_after_optimizations-buffer-assignment.txt"), key=lambda p: p.stat().st_size)
    return parse(files[-1].read_text(encoding="utf-8"), module) if files else []


def parse(text: str, module: hlo.Module) -> list[Buffer]:
    """Lines `allocation N: size S, KIND...:`, each followed by ` value: <ID NAME{INDEX} @0> (size=,offset=): TYPE`."""
    places: dict[tuple[int, int], list[tuple[int, str, str]]] = {}
    kinds: dict[int, str] = {}
    number = -1
    for line in text.splitlines():
        if match := re.match(r"allocation (\d+): size \d+, (.*)", line):
            number = int(match[1])
            kinds[number] = _kind(match[2])
        elif match := re.match(r" value: <\d+ ([^\s{]+)(?:\{[^}]*\})? @\d+> \(size=(\d+),offset=(\d+)\): (\S+)", line):
            name, size, offset, shape = match[1], int(match[2]), int(match[3]), match[4]
            places.setdefault((number, offset), []).append((size, name, re.sub(r"\{.*", "", shape)))
        elif line.startswith("Total bytes used"):
            break
    buffers = [_describe(values, kinds[number], module) for (number, _), values in places.items()]
    return sorted(buffers, key=lambda b: (-b.bytes, b.instruction))


def _kind(text: str) -> str:
    if "parameter" in text:
        return "argument"
    if "constant" in text:
        return "constant"
    return "output" if "maybe-live-out" in text and "temp" not in text else "temporary"


def _describe(values: list[tuple[int, str, str]], kind: str, module: hlo.Module) -> Buffer:
    size = max(value[0] for value in values)
    largest = [value for value in values if value[0] == size]
    if kind == "argument":
        # Its own name says more than the update that is written over it.
        chosen = [value for value in largest if (i := module.by_name.get(value[1])) and i.opcode == "parameter"]
    else:
        # Loops hand a value on under many names: the one that computes it tells most.
        chosen = [value for value in largest if (i := module.by_name.get(value[1])) and i.opcode not in hlo.FREE]
    _, name, shape = (chosen or largest)[0]
    maker = origin(name, module)
    return Buffer(size, shape, kind, name, maker.op_name if maker else "", module.source(maker) if maker else "")


def origin(name: str, module: hlo.Module) -> hlo.Instruction | None:
    """What made the value called `name`; of a loop's stacked results, what made one entry."""
    instruction = module.by_name.get(name)
    if instruction is None:
        return None
    stored = _stored_entry(instruction, module.home[name], module)
    return stored if stored is not None and stored.op_name else instruction


def _stored_entry(instruction: hlo.Instruction, home: hlo.Computation, module: hlo.Module) -> hlo.Instruction | None:
    """What `instruction` writes into a larger array, where that is all it does."""
    if instruction.opcode == "dynamic-update-slice":
        return _producer(instruction.operands[1], home)
    callee = module.computations.get(next(iter(instruction.calls("calls")), ""))
    if instruction.opcode != "fusion" or callee is None:
        return None
    root = next(i for i in callee.values() if i.is_root)
    if root.opcode == "bitcast":
        root = callee[root.operands[0]]
    if root.opcode != "dynamic-update-slice":
        return None
    entry = _producer(root.operands[1], callee)
    if entry is not None and entry.opcode == "parameter":
        return _producer(instruction.operands[int(entry.literal)], home)
    return entry


def _producer(name: str, home: hlo.Computation) -> hlo.Instruction | None:
    """What computes `name`, looking through reshapes, conversions and parts of tuples."""
    instruction = home.get(name)
    while instruction and instruction.opcode in ("bitcast", "reshape", "convert", "copy", "get-tuple-element"):
        if instruction.opcode == "convert" and instruction.op_name:
            break
        instruction = home.get(instruction.operands[0])
    return instruction
