"""`--mode=import`: a run from a checkpoint of another program; `eval`, `sample` and `train` then take it."""

from dfm_jax.cli.command_line import Command
from dfm_jax.run.publishing.importing import import_weights
from dfm_jax.runtime import terminal
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.terminal import note


def run(command: Command) -> int:
    file = command.operands["from"]
    if not file:
        raise UsageError(
            "from = (missing): expected --from=FOLDER, OWNER/NAME of the hub, or a checkpoint.pth or .safetensors file"
        )
    folder = import_weights(
        file,
        command.config,
        command.workdir,
        config_was_given=command.config_was_given,
        layout=command.operands["layout"],
        mask_id=command.operands["mask_id"],
    )
    note(f"next: {terminal.command({'mode': 'eval', 'workdir': folder})}")
    return 0
