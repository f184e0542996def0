"""Adam's moments in an optimiser's state, for checkpoints of other programs."""

import optax


def get_moments(opt_state: optax.OptState) -> optax.ScaleByAdamState:
    """Adam's (count, mu, nu) in an optimiser's state; mu and nu are trees like the parameters.

    Raises:
        ValueError: the optimiser keeps no such moments.
    """
    for state in _parts(opt_state):
        if isinstance(state, optax.ScaleByAdamState):
            return state
    raise ValueError("optim.name: accepted adamw, the only one with Adam's moments")


def set_moments(opt_state: optax.OptState, moments: optax.ScaleByAdamState) -> optax.OptState:
    """`opt_state` with Adam's (count, mu, nu) replaced, for a run that another program began."""
    get_moments(opt_state)
    return tuple(moments if isinstance(s, optax.ScaleByAdamState) else s for s in _parts(opt_state))


def _parts(opt_state: optax.OptState) -> tuple:
    return opt_state if isinstance(opt_state, tuple) else (opt_state,)
