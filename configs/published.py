"""The published recipe, which the published rows change: 170 M parameters on FineWeb-EDU, measured on WikiText-103."""

from ml_collections import ConfigDict

from dfm_jax.config import fields


def get_config() -> ConfigDict:
    """Every field's default: see docs/config.md."""
    return fields.defaults()
