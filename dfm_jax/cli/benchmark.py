"""`--mode=benchmark`: how fast this machine runs the config's programs."""

from dfm_jax import benchmark
from dfm_jax.cli.command_line import Command


def run(command: Command) -> int:
    assert command.workdir is not None
    given = command.operands
    return benchmark.run(
        command.config, command.workdir, only=given["only"], trace=bool(given["trace"]), seconds=given["seconds"]
    )
