"""Minutes on two CPU cores: the real architecture, small, on the documentation that ships with Python."""

from configs import base


def get_config():
    config = base.get_config()
    config.data.train = config.data.valid = "pydocs"
    config.data.num_workers = 2
    config.tokenizer.name = "bytes"
    config.training.batch_size = 32
    config.training.snapshot = 200
    config.training.eval_freq = 200
    config.training.perplexity_freq = 0
    config.optim.lr = 2e-3
    config.optim.warmup = 50
    config.optim.n_iters = 400
    config.model.hidden_size = 128
    config.model.cond_dim = 64
    config.model.length = 128
    config.model.n_blocks = 4
    config.model.n_heads = 4
    config.model.dropout = 0.0
    config.model.remat = "none"
    # A bound that is finite up to t = 1, and times at which its estimate varies least (docstring of flow.time_laws).
    config.model.parametrization = "leave_one_out"
    config.flow.time_epsilon = 0.0
    config.flow.time_law = "squared"
    config.flow.time_sampling = "stratified"
    config.model.time_scale = 1000.0
    config.flow.sampling_steps = 128
    config.eval.batch_size = 64
    config.eval.time_points = 8
    config.eval.num_samples = 16
    config.eval.judge = ""
    config.eval.corpora = ("pydocs",)
    config.sampling.num = 8
    config.sampling.batch_size = 8
    config.logging.log_freq = 20
    return config
