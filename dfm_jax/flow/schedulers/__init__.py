"""Schedulers kappa_t: `base` (the base class), `polynomial`, `trigonometric`, `noise`, and `names` (their table)."""

# ruff: noqa: F401
from dfm_jax.flow.schedulers.base import HostSchedule, Scheduler, SchedulerOutput
from dfm_jax.flow.schedulers.names import SCHEDULERS, WITH_EXPONENT, get_scheduler
