"""Noise of the corpus's unigram law and its kinetic-optimal path: each token has its own schedule, by its frequency."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.flow.path = "kinetic_optimal"
    config.flow.source_distribution = "unigram"
    config.flow.time_epsilon = 0.0
    config.flow.time_sampling = "stratified"
    config.flow.time_law = "squared"
    config.model.parametrization = "leave_one_out"
    return config
