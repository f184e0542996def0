"""`python -m dfm_jax.planning.child REQUEST.json ANSWER.json`: compiles one program in a process of its own.

A process of its own, because a compiler that fails may end the process it runs in, and because what it allocates
is only given back at its end.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from dfm_jax.planning.hlo import arithmetic, buffers, collectives
from dfm_jax.planning.hlo import text as hlo
from dfm_jax.planning.targets import parse
from dfm_jax.runtime.errors import UsageError

if TYPE_CHECKING:
    from dfm_jax.planning.programs import Program

LARGEST = 10
VOCABULARY_MULTIPLE = 256  # rows that padding may have added, at most


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles and reads the program that a request {config, target, program, vocab_size} describes."""
    import jax
    from jax.experimental import topologies

    from dfm_jax import config as configs
    from dfm_jax.experiment.problem import get_model_config
    from dfm_jax.models import implementations
    from dfm_jax.planning import programs
    from dfm_jax.runtime.mesh import MeshShape, make_mesh

    target = parse(request["target"])
    config = configs.from_json(request["config"])
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target.chip.description, topology=target.topology
    )
    mesh = make_mesh(MeshShape(**config.mesh), topology.devices)
    model = get_model_config(config, request["vocab_size"], "gpu")
    implementations.check(model, config.model.head, mesh, losses=request["program"] != "sample")
    # The mesh in force tells the traced functions which platform they are for.
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as dump:
        started = time.monotonic()
        program = programs.PROGRAMS[request["program"]](config, request["vocab_size"], mesh)
        lowered = program.function.lower(*program.arguments)
        traced = time.monotonic()
        # A dump changes nothing in the program; it is where the compiler writes what each buffer holds.
        compiled = lowered.compile(compiler_options={"xla_dump_to": dump, "xla_dump_hlo_as_text": True})
        finished = time.monotonic()
        module = hlo.parse(compiled.as_text())
        found = buffers.read(pathlib.Path(dump), module)
    return {
        "program": program.name,
        "rows": program.rows,
        "tokens": program.tokens,
        "turns": program.turns,
        "mesh": dict(mesh.shape),
        "trace_seconds": round(traced - started, 1),
        "compile_seconds": round(finished - traced, 1),
        "jax": jax.__version__,
        "memory": memory(compiled.memory_analysis()),
        "buffers": [dataclasses.asdict(b) for b in found[:LARGEST]],
        "vocabulary": vocabulary(module, program, rows_split(mesh)),
        "arithmetic": dataclasses.asdict(arithmetic.read(module, target.chip)),
        "hidden": arithmetic.hidden_seconds(module, target),
        "collectives": [dataclasses.asdict(c) for c in collectives.read(module, target)],
    }


def rows_split(mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


def memory(analysis) -> dict[str, int]:
    """Bytes on each device."""
    return {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "outputs_in_place_of_arguments": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "peak": analysis.peak_memory_in_bytes,
    }


def vocabulary(module: hlo.Module, program: "Program", parts: int) -> dict[str, Any]:
    """The largest array over positions and vocabulary that is stored, beside what a device's logits would be."""
    widest = max(
        (
            (shape.size, str(shape), instruction.op_name)
            for instruction, _, _ in module.executed()
            for shape in instruction.shapes
            if instruction.opcode not in hlo.FREE and is_over_vocabulary(shape, program)
        ),
        default=(0, "", ""),
    )
    return {
        "logits_per_device": program.tokens // parts * program.states,
        "largest": widest[0],
        "shape": widest[1],
        "operation": widest[2],
    }


def is_over_vocabulary(shape: hlo.Shape, program: "Program") -> bool:
    """Whether an axis is the vocabulary, padded or not, and the others are positions: not the head's own matrix."""
    axes = [n for n in shape.dims if program.states <= n < program.states + VOCABULARY_MULTIPLE]
    return bool(axes) and shape.size != axes[0] * program.width


def main() -> None:
    request, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    try:
        result = answer(json.loads(request.read_text(encoding="utf-8")))
    except (UsageError, ValueError, RuntimeError, NotImplementedError) as error:
        # The parent says it in one line; a traceback would only bury it.
        result = {"error": type(error).__name__, "text": " ".join(str(error).split())}
    target.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
