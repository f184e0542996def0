"""From what a Python caller names, a config, to a checked one."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dfm_jax import config as configs
from dfm_jax.config import Config
from dfm_jax.experiment import conditions
from dfm_jax.run.arguments import as_value_errors


def resolve(config: Any, overrides: Mapping[str, Any] | None, mode: str | None = None) -> Config:
    """The frozen config of a name, a file, a run's folder, a ConfigDict or a Config, with other values of some fields.

    overrides: {"group.field": value}. mode: what it is for, see `conditions.check`.

    Raises:
        ValueError: naming the field, or `config` or `overrides` where they are none.
    """
    with as_value_errors():
        return change(read(config, overrides), overrides, mode)


def change(config: Config, overrides: Mapping[str, Any] | None, mode: str | None = None) -> Config:
    """The config with other values of some fields, checked. Raises as `resolve`."""
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ValueError(f'overrides = {overrides!r}: expected fields and values, such as {{"optim.lr": 1e-3}}')
    with as_value_errors():
        config = configs.replace(config, {str(name): plain(value) for name, value in (overrides or {}).items()})
        conditions.check(config, mode)
    return config


def read(config: Any, overrides: Any = None) -> Config:
    """overrides: what will be set beside it, a mapping or anything else, which is refused elsewhere."""
    if isinstance(config, Config):
        return config
    if isinstance(config, ConfigDict):
        return freeze(config, overrides)
    if isinstance(config, (str, os.PathLike)) and str(config):
        path = pathlib.Path(config).expanduser()
        if (path / "config.json").is_file():
            return configs.load_run(path)
        return freeze(configs.load_file(str(configs.find_config(str(path)))), overrides)
    raise ValueError(
        f"config = {config!r}: expected the name of a config, a Python file with get_config(), a run's folder, a "
        "ConfigDict or a Config"
    )


def freeze(config: ConfigDict, overrides: Any) -> Config:
    """A config file's config, with the text that `overrides` name, if they do: what else it means depends on that."""
    values = configs.values_of(config)
    if isinstance(overrides, Mapping) and "data.train" in overrides:
        values["data.train"] = plain(overrides["data.train"])
    return configs.build(configs.said(values))


def plain(value: Any) -> Any:
    """numpy's and jax's numbers as Python's, a path as text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def run_folder(config: Any, workdir: Any) -> pathlib.Path:
    """The folder that is given, or runs/NAME for a config with a name, or the run's folder that the config is.

    Raises ValueError where there is neither.
    """
    if workdir is not None:
        return folder("workdir", workdir)
    if isinstance(config, (str, os.PathLike)) and str(config):
        path = pathlib.Path(config).expanduser()
        return path if (path / "config.json").is_file() else pathlib.Path("runs") / path.stem
    raise ValueError("workdir = None: expected a folder for the run, as the config has no name")


def folder(name: str, value: Any) -> pathlib.Path:
    """`value` as a path; ValueError naming the argument where it is none."""
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip():
        raise ValueError(f"{name} = {value!r}: expected a path")
    return pathlib.Path(value).expanduser()
