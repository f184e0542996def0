"""What any text can be trained with, which a config file changes: every field with its unit is in docs/config.md.

The network and its optimizer are those of the published recipe. A run is measured on the part of its own text that it
holds out, by its bounds and a few samples, without a judge: nothing but the text is asked for.
"""

from ml_collections import ConfigDict

from dfm_jax.config import base_values


def get_config() -> ConfigDict:
    return base_values.any_text()
