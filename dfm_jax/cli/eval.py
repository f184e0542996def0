"""`--mode=eval`: the numbers that papers print, each with its error and the convention it follows."""

import pathlib

from dfm_jax.cli.command_line import Command
from dfm_jax.run.evaluate import compare, evaluate, frontier, open_to_evaluate
from dfm_jax.runtime import processes


def run(command: Command) -> int:
    operands = command.operands
    if operands["compare"]:
        if processes.is_first():
            print(compare([part.strip() for part in operands["compare"].split(",") if part.strip()]))
        return 0
    assert command.workdir is not None
    output = pathlib.Path(operands["output"]) if operands["output"] else None
    wants_frontier = bool(operands["frontier"])
    trained = open_to_evaluate(
        command.config, command.workdir, step=operands["step"], output=output, frontier=wants_frontier
    )
    if wants_frontier:
        frontier(trained, output)
    else:
        evaluate(trained, output)
    return 0
