"""Masks and uniform noise on the way to the data (a process of GIDD's kind): its tight bound and its own sampler."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.flow.path = "three_term"
    config.flow.noise = 0.5
    config.flow.source_distribution = "mask"
    config.flow.loss_function = "time_reversal"
    config.flow.time_epsilon = 0.0
    config.flow.time_sampling = "stratified"
    config.flow.time_law = "squared"
    config.model.parametrization = "leave_one_out"
    config.sampling.method = "ancestral"
    return config
