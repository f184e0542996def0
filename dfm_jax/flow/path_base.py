"""Aliases for version 0.1, which defined the base class of paths here. It is in `dfm_jax.flow.paths` now."""

# ruff: noqa: F401
from dfm_jax.flow.losses.objective import CROSS_ENTROPIES
from dfm_jax.flow.losses.objective import Objective as PathObjective
from dfm_jax.flow.losses.objective import PosteriorCrossEntropy as PathCrossEntropy
from dfm_jax.flow.paths.base import GeneralPath, Path, clock, find_objective, find_step
