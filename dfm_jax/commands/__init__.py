"""One module per mode: it puts the pieces together, and holds no mathematics of its own."""

import importlib

from dfm_jax.command_line import Command
from dfm_jax.runtime import cache, processes

# Imported when asked for: a command pays only for what it uses.
MODES = {
    "train": "train",
    "prepare": "prepare",
    "eval": "evaluate",
    "sample": "sample",
    "import": "convert",
    "export": "convert",
    "compile": "plan",
    "benchmark": "measure",
}
# Modes whose compiled programs are kept on disk. 'prepare' has none, 'compile' and 'benchmark' measure the compiler.
KEPT = ("train", "eval", "sample", "import", "export")


def run(command: Command) -> int:
    """Carries out a command; the exit status. Raises UsageError or WorldError with one line."""
    from dfm_jax.experiment import conditions
    from dfm_jax.run import one_command

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
        return importlib.import_module(f"dfm_jax.commands.{MODES[command.mode]}").run(command)

    return processes.together(carry_out)
