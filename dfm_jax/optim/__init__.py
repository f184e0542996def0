"""Optimizer and learning rate. To add an optimizer of optax, add a line to the table in `optimizer`.

optimizer   clipping, update direction, weight decay and learning rate, as one optax transformation
muon        Muon for matrices, AdamW for the rest
rate        the learning rate of each update
moments     reads and replaces Adam's moments in an optimizer's state
"""

from dfm_jax.optim.moments import get_moments, set_moments
from dfm_jax.optim.optimizer import NAMES, TABLE, decayed, from_config, make_optimizer
from dfm_jax.optim.rate import learning_rate

__all__ = ["NAMES", "TABLE", "decayed", "from_config", "get_moments", "learning_rate", "make_optimizer", "set_moments"]
