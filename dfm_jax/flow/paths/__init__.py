"""Paths: `base` (the base class), `velocity`, and a folder each: `mixture`, `three_term`, `token_schedules`, `metric`.

A folder holds a path's law, velocities, losses and steps. The losses of the mixture path are in `flow/losses` and its
steps in `flow/samplers`.
"""

# ruff: noqa: F401
from dfm_jax.flow.paths.base import GeneralPath, Path, PathSample, clock, find_objective, find_step
