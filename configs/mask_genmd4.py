"""GenMD4: mask source with a schedule for each token, learned with the network."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.training.grad_accum = 2  # two samples of x_t per text: in one part the 170M form needs 60 of 57.5 GiB
    config.flow.path = "genmd4"
    config.flow.exponents = "learned"
    config.flow.source_distribution = "mask"
    config.flow.loss_function = "masked_elbo"
    config.flow.time_epsilon = 0.0
    config.flow.time_sampling = "stratified"
    # Times by root of sigma: losses that grow as w / sigma have no variance, nor has their gradient in w, on uniform t.
    config.flow.time_law = "squared"
    config.model.parametrization = "leave_one_out"
    return config
