"""Tokens close to x_1 come before far ones: the metric path between random directions, trained by cross-entropy.

Its bound costs the square of the vocabulary: with GPT-2's tokens the run is judged by its samples.
"""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.flow.path = "metric"
    config.flow.embeddings = "random:64"
    config.flow.beta = "power"
    config.flow.loss_function = "cross_entropy"
    config.flow.time_sampling = "stratified"
    config.eval.elbo = False
    config.sampling.method = "kinetic_optimal"
    return config
