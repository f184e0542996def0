"""A text of your own, one GPU or two cores: sizes and steps from both, by the rule of docs/own_text.md.

Masked diffusion by its tight bound. Every field can be set; the others then fit it.
"""

from ml_collections.config_dict import placeholder

from dfm_jax.configs import base


def get_config():
    config = base.get_config()
    config.data.train = ""  # --config.data.train=PATH
    config.data.num_workers = 0
    config.tokenizer.name = "bytes"
    # Found before the first step, where they are not set.
    for group, names in (
        (config.training, ("batch_size", "snapshot", "eval_freq")),
        (config.model, ("length", "hidden_size", "n_blocks", "n_heads")),
        (config.optim, ("n_iters", "warmup")),
        (config.eval, ("max_blocks",)),
        (config.logging, ("log_freq",)),
    ):
        for name in names:
            group[name] = placeholder(int)
    config.optim.name = "muon"
    config.optim.lr = placeholder(float)
    config.model.dropout = placeholder(float)
    config.model.cond_dim = 64
    config.model.qk_norm = True
    config.model.parametrization = "leave_one_out"
    config.training.perplexity_freq = 0
    config.optim.eta_min_ratio = 0.0
    config.flow.source_distribution = "mask"
    config.flow.loss_function = "masked_elbo"
    config.flow.scheduler_type = "cosine_md4"
    config.flow.time_epsilon = 0.0
    config.flow.time_sampling = "stratified"
    config.flow.sampling_steps = 128
    config.eval.batch_size = 64
    config.eval.time_points = 32
    config.eval.num_samples = 16
    config.sampling.num = 8
    config.sampling.batch_size = 8
    config.checkpoint.keep_best = True
    return config
