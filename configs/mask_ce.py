"""Published row: mask source, cross entropy."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.flow.source_distribution = "mask"
    config.flow.loss_function = "cross_entropy"
    config.flow.time_epsilon = 0.0
    return config
