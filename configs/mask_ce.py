"""Published row: mask source, cross entropy."""

from dfm_jax.configs import base


def get_config():
    config = base.get_config()
    config.flow.source_distribution = "mask"
    config.flow.loss_function = "cross_entropy"
    config.flow.time_epsilon = 0.0
    return config
