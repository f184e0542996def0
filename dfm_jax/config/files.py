"""Configs in files: Python files that define get_config(), and the config.json of a run."""

import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dfm_jax.config.base_values import said, values_of
from dfm_jax.config.checks import build, flatten, modern, replace
from dfm_jax.config.fields import TABLE, Config
from dfm_jax.runtime.errors import UsageError, WorldError

FIRST = "0.1"  # the version whose runs are the oldest
DEFAULTS = Config().flat()


def load_file(path: str) -> ConfigDict:
    """The config that `get_config()` of the Python file at `path` returns, to be changed and then frozen.

    Raises UsageError where there is no such file, or it does not run, or returns something else.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise UsageError(
            f"config = {path}: no such file; expected a Python file with get_config(), for example {known_configs()}"
        )
    spec = importlib.util.spec_from_file_location("dfm_jax_config", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"config = {path}: expected a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        raise UsageError(
            f"config = {path}: its get_config() raised {one_line(error)}; expected one that runs"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UsageError(
            f"config = {path}: its get_config() returns a {type(config).__name__}; expected a ConfigDict, such as "
            "dfm_jax.configs.base.get_config() gives"
        )
    return config


def find_config(path: str) -> pathlib.Path:
    """`path`, or where it does not exist the bundled file of that name: 'configs/NAME.py', or NAME alone."""
    if not pathlib.Path(path).is_file():
        name = path.removeprefix("configs/").removesuffix(".py")
        if (bundled := bundled_configs() / f"{name}.py").is_file():
            return bundled
    return pathlib.Path(path)


def freeze(config: ConfigDict) -> Config:
    """The config of a config file, checked field by field. Raises UsageError, see `checks.build`."""
    return build(said(values_of(config)))


def bundled_configs() -> pathlib.Path:
    """The folder of the experiments that come with the package: inside it where it is installed, else beside it."""
    package = pathlib.Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def known_configs() -> str:
    names = sorted(p.stem for p in bundled_configs().glob("*.py") if p.stem not in ("__init__", "base", "published"))
    return ", ".join(f"configs/{name}.py" for name in names)


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def to_json(config: Config) -> str:
    """The config as indented JSON; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str, origin: str = "config.json", inside: str = "") -> Config:
    """The inverse of `to_json`. Fields newer than the program that wrote the text take their defaults.

    inside: the name under which a config.json of the hub holds it.

    Raises WorldError, naming `origin`, where the text is no such config, lacks a field that the program that wrote it
    had, or has a value that is not accepted.
    """
    try:
        saved = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WorldError(f"{origin}: {one_line(error)}; expected a config that a run saved") from error
    if inside and isinstance(saved, dict) and "model_type" in saved:
        origin, saved = f"{origin} {inside}", saved.get(inside)
        if saved is None:
            raise WorldError(f"{origin} = (missing): expected the config of a run, as --format=hub writes it")
    if not isinstance(saved, dict) or not all(isinstance(part, dict) for part in saved.values()):
        raise WorldError(f"{origin}: expected a config that a run saved, an object of groups of fields")
    try:
        values = modern(flatten(saved))
        config = build(DEFAULTS | values)
        require_complete(values)
        return config
    except UsageError as error:
        raise WorldError(f"{origin}: {error}") from error


def require_complete(saved: Mapping[str, Any]) -> None:
    """Raises UsageError naming the first field that the program that wrote `saved` ({"group.field": value}) had.

    Its version is that of the newest field that is there; only fields that are newer may be missing.
    """
    version = max((number(TABLE[name].since) for name in saved if name in TABLE), default=number(FIRST))
    for name, field in TABLE.items():
        if name not in saved and number(field.since) <= version:
            raise UsageError(
                f"config.{name} = (missing): expected {field.expected}, which every run of its version has"
            )


def complete(saved: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A checkpoint's config {group: {field: value}} under today's names, with the defaults of newer fields.

    Values are as they were saved. Raises UsageError for a field that the run of that version had and is not there.
    """
    values = modern(flatten(saved))
    require_complete(values)
    found: dict[str, dict[str, Any]] = {}
    for name, value in (DEFAULTS | values).items():
        group, _, leaf = name.partition(".")
        found.setdefault(group, {})[leaf] = value
    return found


def number(version: str) -> tuple[int, ...]:
    """ "0.10" as (0, 10), which is later than (0, 9)."""
    return tuple(int(part) for part in version.split("."))


def load_run(folder: pathlib.Path) -> Config:
    """The config that the run in `folder` saved, or that a folder of `--format=hub` holds.

    Raises WorldError where it cannot be read.
    """
    path = folder / "config.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorldError(f"{path}: {one_line(error)}; expected a config that a run saved") from error
    config = from_json(text, str(path), "run")
    if config.tokenizer.name.startswith("hf:"):
        from dfm_jax.data.tokenizers import hf_files  # the run's own copy of the tokenizer: the folder may have moved

        return replace(config, {"tokenizer.name": hf_files.kept(config.tokenizer.name, folder)})
    return config
