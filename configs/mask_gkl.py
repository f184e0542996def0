"""Published row: mask source, generalized KL."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.flow.source_distribution = "mask"
    return config
