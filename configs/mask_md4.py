"""MD4's objective on our model: mask source, cosine schedule, masked ELBO, revealed tokens carried over."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.flow.source_distribution = "mask"
    config.flow.loss_function = "masked_elbo"
    config.flow.scheduler_type = "cosine_md4"
    config.flow.time_epsilon = 0.0
    config.flow.time_sampling = "stratified"
    config.model.parametrization = "leave_one_out"
    return config
