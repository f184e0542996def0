"""Optimised HLO text, read far enough to count: computations, instructions, how often each one runs."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

DTYPE_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3b11fnuz": 8, "f8e4m3": 8, "f8e3m4": 8, "f8e8m0fnu": 8, "f4e2m1fn": 4,
}  # fmt: skip
# Instructions that move nothing: names for what exists already, and calls whose insides are counted themselves.
FREE = frozenset(
    {
        *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "opt-barrier"),
        *("while", "call", "conditional", "async-start", "async-update", "async-done", "copy-done"),
        *("partition-id", "replica-id"),
    }
)

# Kernels that are started and ended apart, as XLA of jax 0.11.2 does with some updates in place.
_STARTED = frozenset({"fusion-start", "custom-call-start"})

# One result from one entry of each operand: a fusion computes only those entries of them that it needs.
ELEMENTWISE = frozenset(
    {
        *("add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "select", "compare"),
        *("convert", "exponential", "log", "log-plus-one", "exponential-minus-one", "rsqrt", "sqrt", "tanh"),
        *("and", "or", "not", "xor", "bitcast"),
    }
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array's type."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.size * DTYPE_BITS.get(self.dtype, 0) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = shapes opcode(operands), attributes`."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of a tuple, all arrays in it
    operands: tuple[str, ...]  # names
    attributes: str
    literal: str  # what stands between the parentheses
    is_root: bool

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    @property
    def op_name(self) -> str:
        """The path of JAX functions that made it, '' for what the compiler made itself."""
        return self._text(r'op_name="([^"]*)"')

    @property
    def target(self) -> str:
        """Of a custom call: what is called."""
        return self._text(r'custom_call_target="([^"]*)"')

    @property
    def trip_count(self) -> int | None:
        """Of a while loop: how often its body runs, where the compiler knows."""
        count = self._text(r'"known_trip_count":\{"n":"(\d+)"')
        return int(count) if count else None

    def dims(self, attribute: str) -> tuple[int, ...]:
        """`attribute={1,2}` as numbers."""
        text = self._text(attribute + r"=\{([\d,]*)\}")
        return tuple(int(n) for n in text.split(",") if n)

    def calls(self, attribute: str) -> list[str]:
        """Names of the computations in `attribute=%name` or `attribute={%a, %b}`."""
        match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return re.findall(r"%?([\w.\-]+)", match[1]) if match else []

    def _text(self, pattern: str) -> str:
        match = re.search(pattern, self.attributes)
        return match[1] if match else ""


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str
    places: dict[int, str] = dataclasses.field(default_factory=dict)  # stack frame -> file:line

    def source(self, instruction: Instruction) -> str:
        """file:line of the innermost call in the program that made it, '' where the compiler kept none."""
        match = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        return self.places.get(int(match[1]), "") if match else ""

    def executed(self) -> Iterator[tuple[Instruction, Computation, float]]:
        """(instruction, its computation, how often it runs) for all but the insides of fusions.

        A loop of unknown length counts once, and each branch of a conditional counts.
        """
        yield from self._walk(self.entry, 1)

    def _walk(self, name: str, times: float) -> Iterator[tuple[Instruction, Computation, float]]:
        computation = self.computations.get(name, {})
        for instruction in computation.values():
            yield instruction, computation, times
            if instruction.opcode == "while":
                for body in instruction.calls("body") + instruction.calls("condition"):
                    yield from self._walk(body, times * (instruction.trip_count or 1))
            elif instruction.opcode == "conditional":
                branches = instruction.calls("branch_computations")
                for branch in branches or instruction.calls("true_computation") + instruction.calls(
                    "false_computation"
                ):
                    yield from self._walk(branch, times)
            elif instruction.opcode in ("call", "async-start"):
                for callee in instruction.calls("to_apply") + instruction.calls("calls"):
                    yield from self._walk(callee, times)

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {name: i for computation in self.computations.values() for name, i in computation.items()}

    @functools.cached_property
    def home(self) -> dict[str, Computation]:
        """The computation that each instruction stands in."""
        return {name: computation for computation in self.computations.values() for name in computation}


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`. Lines that are no instructions are passed over."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            match = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
            if match:
                current = computations.setdefault(match[2], {})
                entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = parse_instruction(line)
            if instruction is not None:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("HLO text without an ENTRY computation")
    return Module(computations, entry, parse_places(text))


def parse_places(text: str) -> dict[int, str]:
    """{stack frame: 'file:line'} of the tables that stand before the first computation."""

    def table(name: str, row: str) -> dict[int, re.Match]:
        match = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        rows = match[1].splitlines() if match else []
        found = [(int(line.split(" ", 1)[0]), re.search(row, line)) for line in rows]
        return {number: m for number, m in found if m}

    files = table("FileNames", r'"(.*)"')
    locations = table("FileLocations", r"file_name_id=(\d+).*?\bline=(\d+)")
    frames = table("StackFrames", r"file_location_id=(\d+)")
    places = {}
    for number, frame in frames.items():
        location = locations.get(int(frame[1]))
        file = files.get(int(location[1])) if location else None
        if location and file:
            # Files of the project from its root on, others by their last two names.
            parts = file[1].split("/")
            roots = [i for i, part in enumerate(parts) if part in ("dfm_jax", "kernels", "configs")]
            places[number] = "/".join(parts[roots[-1] if roots else -2 :]) + f":{location[2]}"
    return places


def parse_instruction(line: str) -> Instruction | None:
    """One line of a computation."""
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if match is None:
        return None
    start = match.end()
    # The type: of a tuple, all up to its closing parenthesis.
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    call = re.compile(r"\s*([\w\-]+)\(").match(line, end)
    if call is None:
        return None
    close = _closing(line, call.end() - 1)
    literal = line[call.end() : close]
    opcode, type_text = call[1], line[start:end]
    if opcode in _STARTED:
        # Its type is ((operands), results, what the runtime needs): it is the kernel, and what ends it is free.
        opcode, type_text = opcode.removesuffix("-start"), type_text[_closing(type_text, 1) + 1 : type_text.rindex(",")]
    return Instruction(
        name=match[2],
        opcode=opcode,
        shapes=tuple(parse_shapes(type_text)),
        operands=tuple(re.findall(r"%([\w.\-]+)", literal)),
        attributes=line[close + 1 :],
        literal=literal,
        is_root=match[1] is not None,
    )


def parse_shapes(text: str) -> list[Shape]:
    """All arrays in a type."""
    found = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", text)
    return [Shape(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in found if dtype in DTYPE_BITS]


def _closing(line: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(line)):
        if line[i] == "(":
            depth += 1
        elif line[i] == ")":
            depth -= 1
            if depth == 0:
                return i
    return len(line)


def traffic(module: Module, instruction: Instruction, computation: Computation) -> int:
    """Bytes that one execution reads and writes, if each kernel touches its operands and results once.

    A slice reads and an update in place writes only the part that it names.
    """
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0
    operands = [computation[name] for name in instruction.operands if name in computation]
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * instruction.bytes
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1].bytes
    callee = module.computations.get(next(iter(instruction.calls("calls")), "")) if instruction.operands else None
    if instruction.opcode != "fusion" or callee is None:
        return instruction.bytes + sum(operand.bytes for operand in operands)
    parameters = {int(i.literal): i for i in callee.values() if i.opcode == "parameter"}
    total, in_place = 0, 0
    for number, operand in enumerate(operands):
        name = parameters[number].name if number in parameters else ""
        parts = _users(callee, name, ELEMENTWISE) if name else []
        users = _users(callee, name, frozenset({"bitcast"})) if name else []
        if parts and all(u.opcode in ("dynamic-slice", "slice", "gather") and u.operands[0] == p for u, p in parts):
            # Of its own dtype, which a conversion before the slice may have changed.
            read = sum(u.shapes[0].size for u, _ in parts) * DTYPE_BITS.get(operand.shapes[0].dtype, 0) // 8
            total += min(read, operand.bytes)
        elif users and all(u.opcode == "dynamic-update-slice" and u.operands[0] == p for u, p in users):
            # The rest of the array stays where it is: neither read nor written.
            in_place += operand.bytes
            total += sum(callee[u.operands[1]].bytes for u, _ in users)
        else:
            total += operand.bytes
    return total + max(instruction.bytes - in_place, 0)


def _users(computation: Computation, name: str, through: frozenset[str]) -> list[tuple[Instruction, str]]:
    """(instruction, operand through which it uses `name`), looking through instructions of these opcodes."""
    users, waiting, seen = [], [name], {name}
    while waiting:
        operand = waiting.pop()
        for instruction in computation.values():
            if operand not in instruction.operands:
                continue
            if instruction.opcode not in through or instruction.is_root:
                users.append((instruction, operand))
            elif instruction.name not in seen:
                seen.add(instruction.name)
                waiting.append(instruction.name)
    return users
