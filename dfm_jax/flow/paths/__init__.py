"""Paths: `base` (what a path is), `velocity`, and a folder each: `mixture`, `three_term`, `token_schedules`, `metric`.

A folder has the path's law, velocities, losses and steps; the mixture's losses and steps are in `flow/losses` and
`flow/samplers`, whose definitions they are.
"""

# ruff: noqa: F401
from dfm_jax.flow.paths.base import GeneralPath, Path, PathSample, clock, find_objective, find_step
