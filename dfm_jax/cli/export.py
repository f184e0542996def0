"""`--mode=export`: a run's checkpoint in the format of another program."""

from dfm_jax.cli.command_line import Command
from dfm_jax.run.publishing.exporting import export


def run(command: Command) -> int:
    assert command.workdir is not None
    operands = command.operands
    export(
        command.config,
        command.workdir,
        step=operands["step"],
        kind=operands["format"] or "",
        output=operands["output"],
        push=operands["push"],
        license=operands["license"],
    )
    return 0
