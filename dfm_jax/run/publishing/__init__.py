"""Weights of other projects made runs of ours, and runs of ours made folders that others can load.

    importing   a published folder, a name on the hub or a checkpoint file, to a run
    tokens      the tokenizer that goes with a published vocabulary, and where its mask is
"""

from dfm_jax.run.publishing.importing import import_weights

__all__ = ["import_weights"]
