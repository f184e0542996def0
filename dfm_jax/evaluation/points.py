"""The points where a likelihood bound is evaluated, and the objectives there (mathematics.md D.2, D.5).

A bound is int_0^1 E[f_kappa] d kappa, where f is the formula per token on the LINEAR path kappa_t = t. It does not
depend on the schedule of the training. The network is told the time at which its own schedule has that kappa. Points
are stratified within each sequence: the set {((j/n + u) mod 1)} of the reference is {(i + v)/n} with v = frac(n u).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax import flow
from dfm_jax.flow.random import uniform_pair

LAWS = ("uniform", "log", "squared")
MIXTURE = flow.MixtureDiscreteProbPath(flow.CondOTScheduler())


class KappaPoints(NamedTuple):
    """n points per sequence: `linear` (n, B), with kappa as `t` and sigma as `r`, and `weight` (n, B), float32.

    sum_j weight_j f(kappa_j) is an unbiased estimate of int f d kappa over the interval of the points.
    """

    linear: flow.Time
    weight: jax.Array


def kappa_points(keys: jax.Array, points: int, *, sigma: tuple[float, float], law: str = "uniform") -> KappaPoints:
    """Draws `points` stratified points per sequence on sigma = (high, low); keys (B,), one per sequence.

    law 'uniform': uniform in sigma; on (1, eps) these are the reference's points. 'log': uniform in log sigma, for
    tails where f grows as 1/sigma. 'squared': uniform in sqrt(sigma), for an interval that ends at sigma = 0.

    Raises ValueError for another law, no point, or an interval that is not inside [0, 1] (above 0 for 'log').
    """
    high, low = sigma
    if law not in LAWS:
        raise ValueError(f"law = {law!r}: expected {', '.join(LAWS)}")
    if points < 1:
        raise ValueError(f"points = {points}: expected an integer >= 1")
    if not (0 <= low < high <= 1) or (law == "log" and low == 0):
        raise ValueError(f"sigma = {sigma}: expected 1 >= high > low >= 0, low > 0 for law='log'")
    share, left = strata(keys, points)
    if law == "log":
        value = low * jnp.exp(jnp.log(jnp.float32(high / low)) * left)
        weight = value * (jnp.log(jnp.float32(high / low)) / points)
    elif law == "squared":
        root = low**0.5 + (high**0.5 - low**0.5) * left
        value, weight = root**2, root * (2 * (high**0.5 - low**0.5) / points)
    else:
        value, weight = low + (high - low) * left, jnp.full_like(left, (high - low) / points)
        return KappaPoints(flow.Time((1 - high) + (high - low) * share, value), weight)
    return KappaPoints(flow.Time(1 - value, value), weight)


def strata(keys: jax.Array, points: int) -> tuple[jax.Array, jax.Array]:
    """(w, 1 - w), each (n, B) float32: w_i = (i + v)/n for n = `points`, one v ~ U[0, 1) per sequence; keys (B,)."""
    v, left = uniform_pair(keys, (keys.shape[0],))
    i = jnp.arange(points, dtype=jnp.float32)[:, None]
    return (i + v[None]) / points, (points - 1 - i + left[None]) / points


def training_time(scheduler: flow.Scheduler, linear: flow.Time) -> flow.Time:
    """The time at which `scheduler` has the linear path's kappa and sigma: kappa_train^{-1}(kappa)."""
    return scheduler.inverse(linear.t, linear.r)


def bound_names(source: flow.Source, path: flow.Path | None = None) -> tuple[str, ...]:
    """The bounds that evaluation reports for `path` (None: the mixture) and `source`; see `flow.Path.bounds_for`."""
    return (path or MIXTURE).bounds_for(source)


def linear_objective(
    name: str, source: flow.Source, parametrization: str, suppress_mask: bool, path: flow.Path | None = None
) -> flow.Objective:
    """The bound `name` of `path` (None: the mixture) on the linear clock.

    Raises ValueError for an objective that bounds nothing.
    """
    path = (path or MIXTURE).on(flow.CondOTScheduler())
    objective = path.get_objective(name, source, parametrization, suppress_mask)
    if objective.bounds is None:
        raise ValueError(f"bound = {name!r}: expected an objective that bounds a likelihood")
    return objective


def has_exact_tail(objective: flow.Objective) -> bool:
    """Whether the integral up to kappa = 1 is finite for every network (mathematics.md D.3).

    It is for leave-one-out logits, and for a bound that only masked positions contribute to.
    """
    return objective.leave_one_out or objective.charges_masks_alone


def shared_queries(queries: Sequence[flow.HeadQuery]) -> list[int]:
    """For each query, the index of a query whose answer answers it too.

    That query asks for at least as many ids, beginning with the same ones, suppresses the same state, and neither has a
    shift. A query with a reduction is answered only by itself.
    """

    def serves(richer: flow.HeadQuery, query: flow.HeadQuery) -> bool:
        return (
            richer.shift is None
            and query.shift is None
            and richer.suppress == query.suppress
            and richer.ids.shape[-1] >= query.ids.shape[-1]
            and query.reduction is None
        )

    richest = sorted(range(len(queries)), key=lambda i: (queries[i].reduction is None, -queries[i].ids.shape[-1]))
    return [next((j for j in richest if j == i or serves(queries[j], query)), i) for i, query in enumerate(queries)]


def mask_counts(keys: jax.Array, points: int, length: int) -> jax.Array:
    """Draws n ~ U{1..L} for L = `length`, (points, B) int32, stratified within each sequence; keys (B,)."""
    share, _ = strata(keys, points)
    return jnp.clip((share * length).astype(jnp.int32) + 1, 1, length)
