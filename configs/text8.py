"""text8, a to z and the blank, in blocks of 256: MD4's recipe on our model. What to expect: docs/expect.md."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.data.train = config.data.valid = "text8"
    config.tokenizer.name = "char:text8"
    config.training.batch_size = 512
    config.optim.update(lr=3e-4, weight_decay=0.03, warmup=2000, n_iters=1_000_000, ema_decay=0.9999)
    config.flow.source_distribution = "mask"
    config.flow.loss_function = "masked_elbo"
    config.flow.time_epsilon = 0.0
    config.flow.time_sampling = "stratified"
    config.model.length = 256
    config.model.dropout = 0.05
    config.eval.corpora = ("text8:split=test",)
    config.eval.judge = ""  # GPT-2 never saw text of this kind
    return config
