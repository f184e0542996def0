"""What each kernel of a compiled program is for: its name and place, and the category that its bytes belong to."""

import collections
import re
from collections.abc import Iterator

from dfm_jax.planning.hlo import text as hlo

CATEGORIES = (
    "matrix products",
    "attention",
    "head",
    "norms and modulation",
    "activation",
    "residual",
    "dropout",
    "optimizer",
    "copies",
    "other",
)
# Scopes that the model gives its steps (`jax.named_scope`), in the path of functions behind every instruction.
SCOPES = {
    "norm": "norms and modulation",
    "activation": "activation",
    "residual": "residual",
    "dropout": "dropout",
    "attention": "attention",
}
_HEAD = ("kernels/vocab_head/", "dfm_jax/models/head.py")
# Where the update is computed: ours, and Optax's, whose files are named by their last two parts.
_UPDATE = (
    "dfm_jax/optim/",
    "dfm_jax/training/step.py",
    "tree_utils/",
    "transforms/",
    "src/transform",
    "src/update",
    "src/factorized",
    "src/combine",
    "contrib/_muon",
)
# An instruction that only puts values elsewhere, or in another dtype.
_MOVES = frozenset(
    {
        *("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "copy", "transpose", "reshape"),
        *("slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad", "broadcast", "convert"),
        *("copy-start", "copy-done"),
    }
)


def maker(module: hlo.Module, instruction: hlo.Instruction) -> hlo.Instruction:
    """What says most of a kernel: of a fusion, the instruction inside that makes the largest of its results.

    Instructions that the compiler made have no name; then the nearest of those that they were computed from. The
    kernel itself where nothing in it has a name.
    """
    return next(_named(module, instruction), instruction)


def _named(module: hlo.Module, instruction: hlo.Instruction) -> Iterator[hlo.Instruction]:
    """Instructions with a name inside a fusion, from the maker of its largest result back; else the kernel itself."""
    callee = _inside(module, instruction)
    if callee is None:
        yield instruction
        return
    root = next(i for i in callee.values() if i.is_root)
    results = [callee[name] for name in root.operands if name in callee] if root.opcode == "tuple" else [root]
    largest = max(results, key=lambda result: result.bytes)
    waiting, seen = collections.deque([largest]), {largest.name}
    while waiting:
        found = waiting.popleft()
        if found.op_name and found.opcode != "parameter":
            yield found
        for name in found.operands:
            if name in callee and name not in seen:
                seen.add(name)
                waiting.append(callee[name])


def category(
    module: hlo.Module, instruction: hlo.Instruction, *, multiplies: bool = False, attends: bool = False
) -> str:
    """One of CATEGORIES.

    A kernel of several steps counts where its largest result belongs.

    Args:
        multiplies: it holds a matrix product.
        attends: it is one of attention's kernels.
    """
    made = maker(module, instruction)
    place = module.source(made)
    in_head = place.startswith(_HEAD)
    if attends:
        return "attention"
    if multiplies:
        return "head" if in_head else "matrix products"
    if _only_moves(module, instruction):
        return "copies"
    if in_head:
        return "head"
    if place.startswith("kernels/attention/"):
        return "attention"
    if "jvp" not in made.op_name and place.startswith(_UPDATE):
        return "optimizer"
    # A sum of two gradients stands in no scope: it belongs to what made them.
    for found in _named(module, instruction):
        scopes = [part for part in re.findall(r"\w+", found.op_name) if part in SCOPES]
        if scopes:
            return SCOPES[scopes[-1]]
    return "other"


def _inside(module: hlo.Module, instruction: hlo.Instruction) -> hlo.Computation | None:
    if instruction.opcode != "fusion":
        return None
    return module.computations.get(next(iter(instruction.calls("calls")), ""))


def _only_moves(module: hlo.Module, instruction: hlo.Instruction) -> bool:
    callee = _inside(module, instruction)
    if callee is None:
        return instruction.opcode in _MOVES
    return all(i.opcode in _MOVES for i in callee.values())
