"""Minutes on two CPU cores: the real architecture, small, on the documentation that ships with Python."""

from dfm_jax.configs import base


def get_config():
    config = base.get_config()
    config.data.train = config.data.valid = "pydocs"
    config.data.num_workers = 2
    config.tokenizer.name = "bytes"
    config.training.batch_size = 16
    config.training.unroll = 1
    config.training.snapshot = 700
    config.training.eval_freq = 700
    config.training.perplexity_freq = 0
    # Found by a measured search (docs/measured.md): the source, the optimizer, its rate and the average.
    config.optim.name = "muon"
    config.optim.lr = 1e-2
    config.optim.warmup = 100
    config.optim.n_iters = 3000
    config.optim.eta_min_ratio = 0.3
    config.optim.ema_decay = 0.995
    config.model.hidden_size = 128
    config.model.cond_dim = 64
    config.model.length = 64
    config.model.n_blocks = 2
    config.model.n_heads = 4
    config.model.dropout = 0.0
    # What helps a small model in a short run: a clock that it can read, and heads that settle early.
    config.model.time_scale = 1000.0
    config.model.qk_norm = True
    # A bound that is finite up to t = 1, and times at which its estimate varies least.
    config.model.parametrization = "leave_one_out"
    config.flow.source_distribution = "mask"
    config.flow.time_epsilon = 0.0
    config.flow.time_law = "squared"
    config.flow.time_sampling = "stratified"
    config.flow.sampling_steps = 64
    config.eval.batch_size = 128
    config.eval.time_points = 16
    config.eval.num_samples = 16
    config.eval.judge = ""
    config.eval.corpora = ("pydocs",)
    config.sampling.num = 8
    config.sampling.batch_size = 8
    config.logging.log_freq = 50
    return config
