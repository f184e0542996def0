"""What a compiled program computes: matrix products, attention, custom calls, and the memory it moves."""

import collections
import dataclasses
import math
import re

from dfm_jax.planning.hlo import categories, collectives
from dfm_jax.planning.hlo import text as hlo
from dfm_jax.planning.targets import Chip, Target

SLOWEST = 10  # kernels that are listed at least
LISTED = 0.5e-3  # seconds from which every kernel is
# Compiled Pallas kernels, by the names of their custom calls.
PALLAS = ("triton", "mosaic_gpu", "pallas")
# Matrix products in each of our own attention kernels; those of the vocabulary head have one.
FLASH_PRODUCTS = {"flash_forward": 2, "flash_dq": 3, "flash_dkv": 4}
VOCAB_KERNEL = "vocab_"
REPETITION = re.compile(r"(.+)\.remat\d*")  # what XLA's rematerialization calls its copies


@dataclasses.dataclass(frozen=True)
class Kernel:
    """All executions, on one device, of the instructions that come from one place, at the chip's figures."""

    executions: float
    flops: float
    bytes: float
    seconds: float  # at the slower of arithmetic and memory
    operation: str
    source: str
    category: str  # of `categories.CATEGORIES`


@dataclasses.dataclass(frozen=True)
class Share:
    """All kernels of one category, on one device, at the chip's figures."""

    category: str
    kernels: float  # executions
    flops: float
    bytes: float
    seconds: float | None  # None where the chip's peak is not known


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Of one execution, on one device."""

    matrix_flops: float  # multiply-adds of matrix products count 2
    attention_flops: float  # inside attention's calls, cuDNN's and ours, by formula
    float32_flops: float  # the part of matrix_flops whose operands are float32 or wider
    bytes_moved: float  # if each kernel reads its operands and writes its results once
    custom_calls: dict[str, int]  # target -> executions
    attention_workspace: int  # bytes, of the largest cuDNN backward call
    unknown_loops: bool  # a loop of unknown length counted once
    pallas_calls: dict[str, int]  # kernel -> executions; of one that is not ours, the arithmetic is not in the sums
    kernel_seconds: float | None  # one kernel after another, each at the chip's arithmetic or memory, the slower
    slowest: tuple[Kernel, ...]  # the first ten, and all above half a millisecond
    shares: tuple[Share, ...] = ()  # by category, in the order of `categories.CATEGORIES`, those that occur
    host_waits: int = 0  # at least how often the device stops until the host has read which way to go
    repeated_flops: float = 0.0  # the part of `flops` that XLA itself computes again, to keep to a limit of memory

    @property
    def flops(self) -> float:
        return self.matrix_flops + self.attention_flops


def read(module: hlo.Module, chip: Chip) -> Arithmetic:
    matrix = wide = attention = moved = seconds = 0.0
    workspace, unknown, waits = 0, False, 0.0
    kernels: dict[tuple[str, str, str], list[float]] = {}
    shares: dict[str, list[float]] = {}
    calls: collections.Counter[str] = collections.Counter()
    pallas: collections.Counter[str] = collections.Counter()
    repeated = 0.0
    for instruction, computation, times in module.executed():
        work = work_of(module, instruction, computation)
        open_ended = instruction.opcode == "while" and instruction.trip_count is None
        unknown |= open_ended
        # A loop of known length is counted by the host alone.
        waits += times if open_ended or instruction.opcode == "conditional" else 0
        moved += times * work.bytes
        matrix += times * work.matrix
        wide += times * work.float32
        attention += times * work.attention
        repeated += times * work.flops if is_repetition(instruction, computation) else 0.0
        workspace = max(workspace, work.workspace)
        if instruction.opcode == "custom-call":
            calls[instruction.target] += round(times)
            if any(word in instruction.target.lower() for word in PALLAS):
                pallas[kernel_name(instruction)] += round(times)
        if not work.bytes and not work.flops:
            continue
        here = 0.0 if chip.peak is None else times * work.seconds(chip)
        seconds += here
        made = categories.maker(module, instruction)
        kind = categories.category(
            module, instruction, multiplies=work.matrix > 0, attends=work.attention > 0
        )  # fmt: skip
        name = made.op_name or f"{instruction.opcode} {instruction.name}"
        for row in (
            kernels.setdefault((name, module.source(made), kind), [0.0] * 4),
            shares.setdefault(kind, [0.0] * 4),
        ):
            for i, value in enumerate((times, times * work.flops, times * work.bytes, here)):
                row[i] += value
    slowest = sorted(kernels.items(), key=lambda item: (-item[1][3], -item[1][2]))
    return Arithmetic(
        matrix_flops=matrix,
        attention_flops=attention,
        float32_flops=wide,
        bytes_moved=moved,
        custom_calls=dict(calls),
        attention_workspace=workspace,
        unknown_loops=unknown,
        pallas_calls=dict(pallas),
        kernel_seconds=None if chip.peak is None else seconds,
        slowest=tuple(
            Kernel(*row, operation=operation, source=source, category=kind)
            for i, ((operation, source, kind), row) in enumerate(slowest)
            if chip.peak is not None and (i < SLOWEST or row[3] >= LISTED)
        ),
        host_waits=round(waits),
        repeated_flops=repeated,
        shares=tuple(
            Share(kind, *shares[kind][:3], seconds=None if chip.peak is None else shares[kind][3])
            for kind in categories.CATEGORIES
            if kind in shares
        ),
    )


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one execution of one instruction: operations, bytes."""

    matrix: float = 0.0
    float32: float = 0.0
    attention: float = 0.0
    bytes: float = 0.0
    workspace: int = 0

    @property
    def flops(self) -> float:
        return self.matrix + self.attention

    def seconds(self, chip: Chip) -> float:
        """At the slower of the chip's arithmetic and memory; its peak must be known."""
        assert chip.peak is not None
        return max(self.flops / chip.peak, self.bytes / chip.memory_bandwidth)


def work_of(module: hlo.Module, instruction: hlo.Instruction, computation: hlo.Computation) -> Work:
    """What one execution does; collectives, whose time is the links', do nothing here."""
    if instruction.opcode.startswith(collectives.KINDS):
        return Work()
    found = products(module, instruction, computation)
    attention, workspace = 0.0, 0
    if instruction.target.startswith("__cudnn$fmha"):
        attention, workspace = cudnn_attention(instruction, computation)
    head = 0.0
    if instruction.opcode == "custom-call":
        attention += flash_attention(instruction, computation)
        head = vocabulary_head(instruction, computation)
    return Work(
        matrix=head + sum(flops for flops, _ in found),
        float32=sum(flops for flops, is_wide in found if is_wide),
        attention=attention,
        bytes=hlo.traffic(module, instruction, computation),
        workspace=workspace,
    )


def is_repetition(instruction: hlo.Instruction, computation: hlo.Computation) -> bool:
    """Whether XLA's rematerialization made it, while another of the same name computes the same before it.

    Where all that used the first one use the second, the first one is gone, unless something has to wait for it.
    """
    match = REPETITION.fullmatch(instruction.name)
    if match is None:
        return False
    for name in computation:  # in the order of execution
        if name == instruction.name:
            return False
        other = REPETITION.fullmatch(name)
        if (name if other is None else other[1]) == match[1]:
            return True
    return False


def hidden_seconds(module: hlo.Module, target: Target) -> float | None:
    """Link time that kernels can hide, as the compiler ordered them; None where the chip's figures do not give it.

    Between a collective's start and its end stand kernels: as much of its time as they take is hidden.
    """
    if target.chip.peak is None or target.chip.nvlink is None or target.chip.network is None:
        return None
    starts: dict[str, float] = {}
    hidden = clock = 0.0
    for instruction, computation, times in module.executed():
        kind = instruction.opcode.removesuffix("-start").removesuffix("-done")
        if kind not in collectives.KINDS:
            clock += work_of(module, instruction, computation).seconds(target.chip)
        elif instruction.opcode.endswith("-start"):
            starts[instruction.name] = clock
        elif instruction.opcode.endswith("-done") and instruction.operands[0] in starts:
            start = computation[instruction.operands[0]]
            links = collectives.seconds_of(start, module, target)
            hidden += times * min(links, clock - starts[start.name])
    return hidden


def kernel_name(instruction: hlo.Instruction) -> str:
    """The kernel's own name: what stands before the call itself in its path of functions."""
    parts = [part for part in instruction.op_name.split("/") if part not in ("mpmd_map", "pallas_call")]
    return parts[-1] if parts else instruction.name


def flash_attention(instruction: hlo.Instruction, computation: hlo.Computation) -> float:
    """Operations of one call of `kernels/attention/flash_gpu.py` on (B, L, H, d), 0 of another's."""
    count = FLASH_PRODUCTS.get(kernel_name(instruction), 0)
    if not count:
        return 0.0
    shapes = (computation[name].shapes[0].dims for name in instruction.operands)
    batch, length, heads, width = next(dims for dims in shapes if len(dims) == 4)  # after the rotary tables
    return count * 2.0 * batch * heads * length**2 * width


def vocabulary_head(instruction: hlo.Instruction, computation: hlo.Computation) -> float:
    """Operations of one call of `kernels/vocab_head/pallas_gpu.py` on (N, D) and (D, V), 0 of another's."""
    if not kernel_name(instruction).startswith(VOCAB_KERNEL):
        return 0.0
    (rows, width), (_, columns) = (computation[name].shapes[0].dims for name in instruction.operands[:2])
    return 2.0 * rows * width * columns


def products(
    module: hlo.Module, instruction: hlo.Instruction, computation: hlo.Computation
) -> list[tuple[float, bool]]:
    """(operations, operands of 32 bits or more) of each matrix product in an instruction, fusions looked into."""
    if instruction.opcode == "dot":
        return [_product(instruction, computation, instruction.dims("lhs_contracting_dims"))]
    if instruction.opcode == "custom-call" and re.search("gemm|matmul", instruction.target):
        match = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
        dims = tuple(int(n) for n in re.findall(r"\d+", match[1])) if match else ()
        return [_product(instruction, computation, dims)] if dims else []
    if instruction.opcode == "fusion":
        inner = [module.computations.get(name, {}) for name in instruction.calls("calls")]
        return [p for callee in inner for i in callee.values() for p in products(module, i, callee)]
    return []


def _product(
    instruction: hlo.Instruction, computation: hlo.Computation, contracted: tuple[int, ...]
) -> tuple[float, bool]:
    left = computation[instruction.operands[0]].shapes[0]
    size = 2.0 * instruction.shapes[0].size * math.prod(left.dims[d] for d in contracted)
    return size, hlo.DTYPE_BITS[left.dtype] >= 32


def cudnn_attention(instruction: hlo.Instruction, computation: hlo.Computation) -> tuple[float, int]:
    """(operations, workspace bytes) of one call on queries (B, L, H, d) and keys of the same length.

    Forward: two products of 2 B H L^2 d; backward: five. The backward call accumulates the queries' gradient in
    float32 and keeps one number a query: B H L (4 d + 4) + 256 bytes that the compiler does not count.
    """
    batch, length, heads, width = computation[instruction.operands[0]].shapes[0].dims
    product = 2.0 * batch * heads * length**2 * width
    if "Backward" in instruction.target:
        return 5 * product, batch * heads * length * (4 * width + 4) + 256
    return 2 * product, 0
