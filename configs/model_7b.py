"""7 billion parameters: the published recipe, wider and deeper, on one or more nodes of 8 GPUs."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.model.hidden_size = 4096
    config.model.n_blocks = 32
    config.model.n_heads = 32
    config.model.remat = "blocks"
    config.training.unroll = 1
    config.training.grad_accum = 2
    config.optim.lr = 1.2e-4
    # Parameters and moments are split inside a node, where links are fast; nodes exchange gradients only.
    config.mesh.fsdp = 8
    return config
