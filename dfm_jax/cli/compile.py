"""`--mode=compile`: compiles the config's programs for a machine that is not here, and says what they need."""

from dfm_jax import planning
from dfm_jax.cli.command_line import Command


def run(command: Command) -> int:
    assert command.workdir is not None
    operands = command.operands
    return planning.run(command.config, operands["target"], command.workdir, axes=operands["sweep"])
