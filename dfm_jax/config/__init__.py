"""A run's settings: every field stated once (`fields`), read from files and words, checked, and frozen.

    fields, statement, accepted   what a field is, its default, meaning, unit and what it accepts
    retired, hints                old names and values answered; the field that was meant
    checks, files, overrides      from a config file, a saved run or a command line to a frozen `Config`
    reference                     the list of all fields, for --help=config and docs/config.md

Outside this room and the config files a config is the frozen `Config`; a ConfigDict goes no further.
"""

from dfm_jax.config.base_values import said, values_of
from dfm_jax.config.checks import build, flatten, modern, replace
from dfm_jax.config.fields import NETWORK, NEVER_CHANGED, TABLE, Config, defaults
from dfm_jax.config.files import (
    bundled_configs,
    complete,
    find_config,
    freeze,
    from_json,
    known_configs,
    load_file,
    load_run,
    one_line,
    to_json,
)
from dfm_jax.config.statement import FIXED

__all__ = [
    "FIXED",
    "NETWORK",
    "NEVER_CHANGED",
    "TABLE",
    "Config",
    "build",
    "bundled_configs",
    "complete",
    "defaults",
    "find_config",
    "flatten",
    "freeze",
    "from_json",
    "known_configs",
    "load_file",
    "load_run",
    "modern",
    "one_line",
    "replace",
    "said",
    "to_json",
    "values_of",
]
