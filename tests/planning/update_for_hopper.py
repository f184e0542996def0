"""Run in its own process by test_update_passes.py: compiles a small step for an H100 and counts who reads what.

    JAX_PLATFORMS=cpu PYTHONPATH=. python tests/planning/update_for_hopper.py GRAD_ACCUM

Prints a JSON object: bytes of the `leaves`, bytes `moved` by what belongs to no forward or backward pass, and for every
large parameter the kernels among these that read it, its average and its two moments (`read`).
"""

import json
import sys

import jax
from jax.experimental import topologies

from configs import base
from dfm_jax.planning import programs, targets
from dfm_jax.planning.hlo import text as hlo
from dfm_jax.runtime.mesh import MeshShape, make_mesh

LARGE = 2**17  # bytes


def compiled(grad_accum: int) -> hlo.Module:
    # Five blocks: gradients of three, written out one after the other, are put together by a kernel that makes a single
    # output, and so the update of each block's parameters falls apart (18 times the parameters, not 10).
    config = base.get_config()
    model, target = config.model, targets.parse("h100")
    model.hidden_size, model.n_blocks, model.n_heads, model.length, model.attention = 256, 5, 4, 64, "xla"
    config.training.batch_size, config.training.grad_accum, config.optim.ema_decay = 8, grad_accum, 0.999
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target.chip.description, topology=target.topology
    )
    mesh = make_mesh(MeshShape(**config.mesh), topology.devices)
    with jax.set_mesh(mesh):
        program = programs.train(config, 1000, mesh)
        return hlo.parse(program.function.lower(*program.arguments).compile().as_text())


def passes(module: hlo.Module) -> dict:
    # Inside loops are the passes over blocks and over parts of the batch.
    entry = module.computations[module.entry]
    update = [i for i in entry.values() if "jvp" not in i.op_name and i.opcode not in hlo.FREE]
    arguments = {i.op_name: i for i in entry.values() if i.opcode == "parameter"}
    leaves = {name: i for name, i in arguments.items() if name.startswith("state.model.")}

    def readers(argument: hlo.Instruction) -> list[str]:
        return sorted(i.name for i in update if argument.name in i.operands)

    read = {}
    for name, leaf in leaves.items():
        if leaf.bytes >= LARGE:
            rest = name.removeprefix("state.model")
            kept = [f"state.{place}{rest}" for place in ("ema", "opt_state[1].mu", "opt_state[1].nu")]
            read[name] = [readers(arguments[argument]) for argument in (name, *kept)]
    return {
        "leaves": sum(i.bytes for i in leaves.values()),
        "moved": sum(hlo.traffic(module, i, entry) for i in update),
        "read": read,
    }


if __name__ == "__main__":
    print(json.dumps(passes(compiled(int(sys.argv[1])))))
