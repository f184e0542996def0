"""Published row: uniform source, generalized KL."""

from dfm_jax.configs import base


def get_config():
    return base.get_config()
