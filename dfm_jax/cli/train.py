"""`--mode=train`: begins a run, or continues the one in its folder; ends with its evaluation and its samples."""

from dfm_jax.cli.command_line import Command
from dfm_jax.run.train import train


def run(command: Command) -> int:
    assert command.workdir is not None
    train(command.config, command.workdir)
    return 0
