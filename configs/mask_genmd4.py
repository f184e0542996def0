"""GenMD4: mask source with a schedule for each token, learned with the network."""

from dfm_jax.configs import base


def get_config():
    config = base.get_config()
    config.flow.path = "genmd4"
    config.flow.exponents = "learned"
    config.flow.source_distribution = "mask"
    config.flow.loss_function = "masked_elbo"
    config.flow.time_epsilon = 0.0
    config.flow.time_sampling = "stratified"
    config.model.parametrization = "leave_one_out"
    return config
