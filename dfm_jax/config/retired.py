"""Names and values that fields do not have any more, or never had here, each with the way to say it now."""

import dataclasses

DEVICES = "devices are found by themselves; lay them out with --config.mesh.data/fsdp/tensor"
RATE = "the learning rate is on every line of metrics.jsonl; see --config.logging.log_freq"


@dataclasses.dataclass(frozen=True)
class Retired:
    """note: the way to say it now. to: the field (or, of a value, the value) that took its place and is taken for it.

    Without `to` the old way is an error that gives the note.
    """

    note: str = ""
    to: str = ""


# A flag, "group", "group.field" or "group.field=value" -> what is said now. The names are the PyTorch reference's.
RETIRED: dict[str, Retired] = {
    "compute": Retired(DEVICES),
    "model.compile": Retired("everything is compiled; there is nothing to switch"),
    "optim.fused": Retired("XLA fuses the update; there is nothing to switch"),
    "optim.log_lr_every": Retired(RATE),
    "logging.log_lr_every": Retired(RATE),
    "logging.log_file_name": Retired("metrics go to metrics.jsonl and progress to the terminal"),
    "hydra_dir": Retired("--workdir=DIR"),
    "load_dir": Retired("--workdir=DIR continues a run; --config.checkpoint.restore_from=RUN starts from its weights"),
}


def of_name(name: str) -> Retired | None:
    """What is said now for "group.field", a group or a flag, if it is retired."""
    return RETIRED.get(name) or RETIRED.get(name.partition(".")[0])


def of_value(name: str, value: object) -> Retired | None:
    """What is said now for a value of the field `name`, if it is retired."""
    return RETIRED.get(f"{name}={value}")
