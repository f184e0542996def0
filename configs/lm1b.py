"""One Billion Words in blocks of 128 tokens of BERT: MDLM's recipe on our model. What to expect: docs/expect.md.

The hub no longer serves this dataset: its files (one sentence a line) have to lie where data.train and data.valid say.
"""

from dfm_jax.configs import owt


def get_config():
    config = owt.get_config()
    config.data.train = "lm1b@data/lm1b/train/*"
    config.data.valid = "lm1b@data/lm1b/test/*"
    config.tokenizer.name = "hf:google-bert/bert-base-uncased"
    config.model.length = 128
    config.eval.corpora = (config.data.valid,)
    return config
