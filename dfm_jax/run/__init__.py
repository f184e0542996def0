"""A run: its folder, its config, its trained model, and what is done with them.

load, network   a trained model; which config a checkpoint goes with
preflight       everything a command will need, checked before it starts
train, begin    a run from its beginning, or its newest checkpoint, to its evaluation
evaluate, sample, prepare, convert   a finished run's figures and texts; corpora; other programs' checkpoints
devices         the mesh of this machine, for training and for using a run

`dfm_jax.api` and `dfm_jax.cli` are thin calls of these.
"""
