"""One Billion Words in blocks of 128 tokens of BERT: MDLM's recipe on our model. What to expect: docs/expect.md.

The hub no longer serves this dataset: its files (one sentence a line) have to lie where data.train and data.valid say.
"""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.data.train = "lm1b@data/lm1b/train/*"
    config.data.valid = "lm1b@data/lm1b/test/*"
    config.data.packing = "rows"
    config.tokenizer.name = "hf:google-bert/bert-base-uncased"
    config.training.batch_size = 512
    config.optim.update(lr=3e-4, beta2=0.999, weight_decay=0.0, warmup=2500, n_iters=1_000_000, ema_decay=0.9999)
    config.optim.eta_min_ratio = 1.0  # the rate stays at its peak
    config.flow.source_distribution = "mask"
    config.flow.loss_function = "masked_elbo"
    config.flow.time_sampling = "stratified"
    config.model.length = 128
    config.model.time_conditioning = False
    config.eval.corpora = (config.data.valid,)
    return config
