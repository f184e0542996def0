"""A run: its folder, its config, its trained model.

load   a trained model for notebooks, scripts and the modes that work on a run
"""

from dfm_jax.run.load import EVALUATED, NEVER_CHANGED, Run, check_restorable, load, load_with, split_reference

__all__ = ["EVALUATED", "NEVER_CHANGED", "Run", "check_restorable", "load", "load_with", "split_reference"]
