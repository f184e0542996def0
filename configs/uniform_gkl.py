"""Published row: uniform source, generalized KL."""

from configs import base


def get_config():
    return base.get_config()
