"""Published row: uniform source, generalized KL."""

from dfm_jax.configs import published


def get_config():
    return published.get_config()
