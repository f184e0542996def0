"""Optimizer and learning rate. A further optimizer of optax is a line of the table in `optimizer`.

optimizer   clipping, direction, decay and rate as one optax transformation
rate        the learning rate of an update
moments     Adam's moments, in and out of an optimizer's state
"""

from dfm_jax.optim.moments import get_moments, set_moments
from dfm_jax.optim.optimizer import NAMES, decayed, from_config, make_optimizer
from dfm_jax.optim.rate import learning_rate

__all__ = ["NAMES", "decayed", "from_config", "get_moments", "learning_rate", "make_optimizer", "set_moments"]
