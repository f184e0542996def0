"""OpenWebText in blocks of 1024 tokens of GPT-2: MDLM's recipe on our model. What to expect: docs/expect.md."""

from dfm_jax.configs import published


def get_config():
    config = published.get_config()
    config.data.train = "openwebtext"
    config.data.valid = ""  # held out of it: about 100,000 documents, as MDLM's, but others
    config.data.held_out = 0.0125
    config.data.packing = "wrapped"
    config.training.batch_size = 512
    config.optim.update(lr=3e-4, beta2=0.999, weight_decay=0.0, warmup=2500, n_iters=1_000_000, ema_decay=0.9999)
    config.optim.eta_min_ratio = 1.0  # the rate stays at its peak
    config.flow.source_distribution = "mask"
    config.flow.loss_function = "masked_elbo"
    config.flow.time_sampling = "stratified"
    config.model.length = 1024
    config.model.time_conditioning = False
    config.eval.corpora = ("data.valid", "wikitext103", "lambada")
    return config
