"""Which config a checkpoint goes with: what its network means, where the shapes of its arrays do not tell."""

import pathlib
from collections.abc import Mapping
from typing import Any

from dfm_jax import config as configs
from dfm_jax.config import NETWORK, NEVER_CHANGED, Config
from dfm_jax.data.tokenizers import hf_files
from dfm_jax.runtime.errors import UsageError


def check_same_network(saved: dict[str, dict[str, Any]], config: Config, folder: pathlib.Path) -> None:
    """UsageError where a field of `NETWORK` differs from that of the checkpoint's config `saved`."""
    for field, (trained, given) in other_network(saved, config, folder).items():
        raise UsageError(f"config.{field} = {given}: expected {trained}, which {folder} was trained with")


def check_restorable(
    saved: dict[str, dict[str, Any]], config: Config, folder: pathlib.Path, *, told_only: bool = False
) -> None:
    """UsageError where the network of `config`, which starts from a checkpoint of config `saved`, means another thing.

    told_only: `saved` is of a file that tells some fields alone; the others are not compared.
    Fields of `NETWORK` that `checkpoint.restore_changed` names may differ, all but those of `NEVER_CHANGED`.
    """
    named = config.checkpoint.restore_changed
    for field in named:
        if field not in NETWORK or field in NEVER_CHANGED:
            allowed = [name for name in NETWORK if name not in NEVER_CHANGED]
            raise UsageError(f"config.checkpoint.restore_changed = {field}: expected some of {', '.join(allowed)}")
    refused = {
        field: pair for field, pair in other_network(saved, config, folder, told_only).items() if field not in named
    }
    if not refused:
        return
    fields = ", ".join(f"config.{field} = {given}" for field, (_, given) in refused.items())
    trained = ", ".join(str(value) for value, _ in refused.values())
    line = f"{fields}: expected {trained}, which {folder} was trained with"
    if never := [field for field in refused if field in NEVER_CHANGED]:
        raise UsageError(f"{line} ({', '.join(never)} cannot change)")
    raise UsageError(f"{line}, or --config.checkpoint.restore_changed={','.join([*named, *refused])} to change that")


def other_network(
    saved: dict[str, dict[str, Any]], config: Config, folder: pathlib.Path, told_only: bool = False
) -> dict[str, tuple[Any, Any]]:
    """{field: (value in `saved`, value in `config`)} of the fields of `NETWORK` that differ.

    A tokenizer.json is known by its contents, wherever it lies; `folder`, that of the checkpoint's run, has a copy.
    What the checkpoint does not have is newer than it, and was then what its default is.
    """
    was = configs.modern(configs.flatten(saved))
    if not was:
        return {}
    if config.flow.source_distribution != "mask":
        was.pop("model.suppress_mask_logit", None)  # there is none to suppress
    masked = [field for field in NETWORK if field in was or not (told_only or field == "model.suppress_mask_logit")]
    trained = {field: was.get(field, configs.TABLE[field].default) for field in masked}
    found = {field: (value, config[field]) for field, value in trained.items() if config[field] != value}
    name = "tokenizer.name"
    if name in trained and hf_files.same(trained[name], config[name], folder):
        found.pop(name, None)
    elif name in trained:
        found[name] = trained[name], config[name]
    return found


def in_groups(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"group.field": value} as {group: {field: value}}, the form of a saved config."""
    found: dict[str, dict[str, Any]] = {}
    for field, value in fields.items():
        group, _, name = field.partition(".")
        found.setdefault(group, {})[name] = value
    return found


def split_reference(text: str) -> tuple[pathlib.Path, int | None]:
    """'RUN' or 'RUN:STEP' as a folder and a step. A folder whose own name ends in ':' and a number is that folder."""
    folder, colon, step = text.rpartition(":")
    if not colon or pathlib.Path(text).is_dir():
        return pathlib.Path(text), None
    if not (step.isascii() and step.isdigit()):
        raise UsageError(
            f"config.checkpoint.restore_from = {text}: there is no such folder; expected RUN or RUN:STEP, STEP a number"
        )
    return pathlib.Path(folder), int(step)
