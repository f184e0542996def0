"""1.3 billion parameters: the published recipe, wider and deeper, on one node of 8 GPUs."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.model.hidden_size = 2048
    config.model.n_blocks = 21
    config.model.n_heads = 16
    config.model.remat = "blocks"
    config.training.unroll = 1
    config.optim.lr = 2e-4
    # Parameters and moments are split inside a node, where links are fast; nodes exchange gradients only.
    config.mesh.fsdp = 8
    return config
