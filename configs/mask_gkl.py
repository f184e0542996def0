"""Published row: mask source, generalized KL."""

from dfm_jax.configs import base


def get_config():
    config = base.get_config()
    config.flow.source_distribution = "mask"
    return config
