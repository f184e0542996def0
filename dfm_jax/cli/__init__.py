"""The command line: words to a checked command (`command_line`), and one module per mode, named as the mode."""

import importlib

from dfm_jax.cli.command_line import Command, parse

__all__ = ["Command", "parse", "run"]

# Modes whose compiled programs are kept on disk. 'prepare' has none, 'compile' and 'benchmark' measure the compiler.
KEPT = ("train", "eval", "sample", "import", "export")


def run(command: Command) -> int:
    """Carries out a command; the exit status. Raises UsageError or WorldError with one line."""
    # Imported when asked for: a command pays only for what it uses.
    from dfm_jax.cli import one_command
    from dfm_jax.experiment import conditions
    from dfm_jax.runtime import cache, processes

    operands = command.operands
    if operands["num_processes"] is None:
        conditions.check(command.config, command.mode)  # at once, before devices are looked for
    processes.initialize(operands["coordinator"], operands["num_processes"], operands["process_id"])

    if command.mode != "compile":  # which is for devices that are elsewhere
        processes.find_devices()

    def carry_out() -> int:
        processes.agree(one_command.facts(command))
        conditions.check(command.config, command.mode)
        if command.mode in KEPT:
            cache.use(command.config.training.compilation_cache)
        # `import` is a word of Python's.
        name = "import_" if command.mode == "import" else command.mode
        return importlib.import_module(f"{__name__}.{name}").run(command)

    return processes.together(carry_out)
