"""A run from published weights: a folder, a name on the hub, or a checkpoint file."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dfm_jax import config as configs
from dfm_jax.checkpoints import published
from dfm_jax.checkpoints.published import hub
from dfm_jax.config import NETWORK, TABLE, Config
from dfm_jax.data import get_tokenizer
from dfm_jax.run.publishing import convert, tokens
from dfm_jax.run.publishing.tokens import Vocabulary
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.terminal import note

# Forms of rows that need an end of text.
_WITH_ENDS = ("wrapped", "rows")


def import_weights(
    origin: str,
    config: Config,
    workdir: pathlib.Path | None = None,
    *,
    config_was_given: bool,
    layout: str | None = None,
    mask_id: int | None = None,
) -> pathlib.Path:
    """Makes a run's folder of weights; what works on a run then takes it. Returns the folder.

    Args:
        origin: a folder with config.json and weights, OWNER/NAME of the hub, or a checkpoint file.
        config: what the weights do not tell, and must not contradict.
        workdir: None is runs/NAME, with the name of the folder, the repository or the file.
        config_was_given: see `convert.import_weights`.
        layout: whose weights, where config.json does not say; beside a file, config.json lies in its folder.
        mask_id: the mask's id, where it is inside the vocabulary and no tokenizer tells.

    Raises:
        UsageError: the weights and the config, the layout or the mask do not agree.
        WorldError: the weights cannot be read or do not fit together, or the folder has checkpoints already.
    """
    path = pathlib.Path(origin).expanduser()
    if not hub.is_name(origin) and not path.is_dir() and layout is None:
        if mask_id is not None:
            raise UsageError(f"mask_id = {mask_id}: expected with a published folder, or with --layout")
        return convert.import_weights(origin, config, workdir, config_was_given=config_was_given)
    found, config = read(origin, config, config_was_given=config_was_given, layout=layout, mask_id=mask_id)
    name = origin.removeprefix(hub.PREFIX) if hub.is_name(origin) else str(path.resolve())
    workdir = workdir or pathlib.Path("runs") / (pathlib.Path(name).stem if path.is_file() else pathlib.Path(name).name)
    convert.make_run(workdir, config, found.imported, f"{origin}, layout {found.layout}")
    return workdir


def read(
    origin: str, config: Config, *, config_was_given: bool, layout: str | None = None, mask_id: int | None = None
) -> tuple[published.Published, Config]:
    """The weights of `origin` and the config of a run with them. Arguments and errors as of `import_weights`."""
    on_hub = hub.is_name(origin)
    path = hub.fetch(origin) if on_hub else pathlib.Path(origin).expanduser()
    if not path.exists():
        raise WorldError(f"from = {origin}: expected a file or a folder that exists")
    folder, weights = (path, None) if path.is_dir() else (path.parent, path)
    default = Config()
    given = "" if not config_was_given and config.tokenizer.name == default.tokenizer.name else config.tokenizer.name
    own = tokens.of_files(folder, origin.removeprefix(hub.PREFIX) if on_hub else str(folder.resolve()))
    vocabulary = Vocabulary(given or own, mask_id)
    names = (*convert.ARCHITECTURE, "length", "dropout")
    options = {
        name: config.model[name] for name in names if config_was_given or config.model[name] != default.model[name]
    }
    try:
        found = published.read(folder, weights=weights, layout=layout, mask_id=vocabulary.mask, options=options)
    except OSError as error:
        raise WorldError(f"from = {origin}: expected files that can be read ({error.strerror})") from error
    except ValueError as error:
        raise WorldError(f"from = {error}") from error
    if found.run is not None:
        return found, _of_ours(found, config, config_was_given)
    if found.fields:
        states = found.imported.config.vocab_size
        config = configs.replace(config, {"tokenizer.name": vocabulary.name(states, found.mask_id)})
        config = configs.replace(config, _fields(found.fields, config, config_was_given))
    return found, convert.adopt(config, found.imported, config_was_given=config_was_given)


def _fields(told: Mapping[str, Any], config: Config, config_was_given: bool) -> dict[str, Any]:
    """The loss and the rows that the layout tells, where the user did not name others."""
    found = {
        name: value for name, value in told.items() if not config_was_given and config[name] == TABLE[name].default
    }
    tokenizer = config.tokenizer.name
    packing = found.get("data.packing")
    if packing in _WITH_ENDS and get_tokenizer(tokenizer).eos_id < 0:
        note(
            f"data.packing: continuous, as tokenizer {tokenizer} has no end of text; the weights were trained on rows "
            f"of the form '{packing}'"
        )
        found["data.packing"] = "continuous"
    return found


def _of_ours(found: published.Published, config: Config, config_was_given: bool) -> Config:
    """The run's own config, with those fields of `config` that were given and may differ.

    Raises UsageError for a given field that would make the weights another network.
    """
    assert found.run is not None
    saved = configs.from_json(json.dumps(found.run), "config.json run")
    changes = {}
    for name, stated in TABLE.items():
        if config[name] == saved[name] or not (config_was_given or config[name] != stated.default):
            continue
        if name in NETWORK or (name.startswith("model.") and stated.continues is configs.FIXED):
            raise UsageError(f"config.{name} = {config[name]}: expected {saved[name]}, as the folder says")
        changes[name] = config[name]
    return configs.replace(saved, changes)
