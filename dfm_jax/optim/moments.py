"""Reads and replaces Adam's moments in an optimizer's state, for checkpoints of other programs."""

import optax


def get_moments(opt_state: optax.OptState) -> optax.ScaleByAdamState:
    """Adam's (count, mu, nu) in an optimizer's state. mu and nu are trees like the parameters, count is () int32.

    Raises:
        ValueError: the optimizer has no such moments.
    """
    for state in _parts(opt_state):
        if isinstance(state, optax.ScaleByAdamState):
            return state
    raise ValueError("optim.name: expected adamw, the only one with Adam's moments")


def set_moments(opt_state: optax.OptState, moments: optax.ScaleByAdamState) -> optax.OptState:
    """`opt_state` with Adam's (count, mu, nu) replaced by `moments`. Raises ValueError if it has none."""
    get_moments(opt_state)
    return tuple(moments if isinstance(s, optax.ScaleByAdamState) else s for s in _parts(opt_state))


def _parts(opt_state: optax.OptState) -> tuple:
    return opt_state if isinstance(opt_state, tuple) else (opt_state,)
