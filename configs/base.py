"""The published recipe, which a config file changes: every field with its unit is in docs/config.md."""

from ml_collections import ConfigDict

from dfm_jax.config import fields


def get_config() -> ConfigDict:
    """The uniform-source, generalized-KL experiment of 170 M parameters on FineWeb-EDU."""
    return fields.defaults()
