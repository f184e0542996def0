"""Uniform source by its tight bound: leave-one-out logits, time-reversal bound, sampled by its own process."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.flow.loss_function = "time_reversal"
    config.flow.time_epsilon = 0.0
    config.flow.time_sampling = "stratified"
    config.flow.time_law = "squared"
    config.model.parametrization = "leave_one_out"
    config.sampling.method = "ancestral"
    return config
