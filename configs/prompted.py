"""Trained to continue and to fill in: parts of each sequence are given (conditional coupling)."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.flow.source_distribution = "mask"
    config.flow.coupling = "conditional"
    config.flow.time_epsilon = 0.0
    config.flow.time_sampling = "stratified"
    config.model.parametrization = "leave_one_out"
    return config
