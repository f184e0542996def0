"""The command line: words to a checked command (`command_line`), and one module per mode, named as the mode."""

import importlib

from dfm_jax.cli.command_line import Command, parse

__all__ = ["Command", "parse", "run"]

# Modes whose compiled programs are kept on disk. 'prepare' has none, 'compile' and 'benchmark' measure the compiler.
KEPT = ("train", "eval", "sample", "import", "export")
SILENCE = 50.0  # seconds, more than of a heartbeat that says what goes on


def run(command: Command) -> int:
    """Carries out a command; the exit status. Raises UsageError or WorldError with one line."""
    # Imported when asked for: a command pays only for what it uses.
    from dfm_jax.cli import one_command
    from dfm_jax.experiment import conditions
    from dfm_jax.runtime import cache, processes
    from dfm_jax.runtime.terminal import Heartbeat, note

    operands = command.operands
    if operands["num_processes"] is None:
        conditions.check(command.config, command.mode)  # at once, before devices are looked for
    processes.initialize(operands["coordinator"], operands["num_processes"], operands["process_id"])

    # Those of 'compile' are elsewhere; those of 'benchmark' are for the processes that it starts.
    if command.mode not in ("compile", "benchmark"):
        processes.find_devices()

    def carry_out() -> int:
        processes.agree(one_command.facts(command))
        conditions.check(command.config, command.mode)
        if command.mode in KEPT:
            cache.use(command.config.training.compilation_cache)
        # `import` is a word of Python's.
        name = "import_" if command.mode == "import" else command.mode
        # Asked for its number, a process takes its devices, which 'benchmark' leaves to those that it starts.
        alone = command.mode in ("compile", "benchmark")
        say = note if alone or processes.is_first() else lambda line: None
        with Heartbeat(lambda: f"--mode={command.mode}: still at it", say, SILENCE):
            return importlib.import_module(f"{__name__}.{name}").run(command)

    return processes.together(carry_out)
