"""Variance of one sample of a bound, toy D (mathematics.md D.5): which clocks it is finite on, to printed digits.

A time is drawn uniformly on [0, 1], then data, then x_t; the estimate is the loss summed over positions, 0 where
sigma < sigma_min. On clocks with r lambda -> 1 its second moment grows without limit as sigma_min falls.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_elbo import pairs, source_of
from toys import TOYS, conditional_law, mixture, posterior, source_law

from dfm_jax import flow

NODES = 60


@functools.cache
def points(source_name: str, sigma_min: float) -> list[tuple[float, float, np.ndarray, np.ndarray]]:
    """(sigma, weight in sigma, logits of the exact posterior, law of every pair), Gauss-Legendre in log sigma."""
    toy, p = TOYS["D"], source_law(source_name, TOYS["D"].vocab_size)
    x, x_1, _, _ = pairs("D", source_name)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    depth = -np.log(sigma_min) / 2
    found = []
    for node, weight in zip(nodes, weights, strict=True):
        sigma = float(np.exp(-depth * (1 + node)))
        conditional = mixture(1 - sigma, sigma, p, toy.vocab_size)
        with np.errstate(divide="ignore"):
            logits = np.log(posterior(toy, conditional))
        logits = np.pad(logits, ((0, 0), (0, 0), (0, len(p) - toy.vocab_size)), constant_values=-np.inf)[x]
        law = conditional_law(toy, conditional)[x, x_1] * toy.q[x_1]
        found.append((sigma, float(weight) * depth * sigma, logits, law))
    return found


def variance(source_name: str, loss: str, scheduler: flow.Scheduler, sigma_min: float) -> float:
    """Of one sample of the sum over positions, nats^2 per sequence."""
    _, _, x_t, x_1 = pairs("D", source_name)
    source = source_of(source_name, TOYS["D"].vocab_size)
    objective = flow.get_objective(loss, path=flow.MixtureDiscreteProbPath(scheduler), source=source)

    @jax.jit
    def losses(logits: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
        return flow.loss_from_logits(objective, logits, x_1, x_t, flow.Time(t, r)).sum(axis=-1)

    first = second = 0.0
    for sigma, weight, logits, law in points(source_name, sigma_min):
        time = scheduler.float64_inverse(1 - sigma, sigma)
        per_time = weight / float(scheduler.float64(time).d_kappa)
        value = np.where(law > 0, np.asarray(losses(logits, *map(jnp.asarray, time))), 0.0)
        first += per_time * float(law @ value)
        second += per_time * float(law @ value**2)
    return second - first**2


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(
    ("source", "loss", "scheduler", "printed"),
    [
        ("mask", "masked_elbo", flow.CondOTScheduler(), (22.1, 44.6)),
        ("mask", "masked_elbo", flow.PolynomialConvexScheduler(2), (42.8, 87.6)),
        ("mask", "masked_elbo", flow.OneMinusPowerScheduler(2), (14.8, 15.2)),
        ("uniform", "generalized_kl", flow.CondOTScheduler(), (163, 1422)),
        ("uniform", "generalized_kl", flow.SineSquaredScheduler(), (55, 79)),
        ("uniform", "generalized_kl", flow.OneMinusPowerScheduler(2), (36, 51)),
    ],
)
def test_variance_of_one_sample(source, loss, scheduler, printed):
    with jax.enable_x64(True):
        found = [variance(source, loss, scheduler, sigma_min) for sigma_min in (1e-3, 1e-6)]
    digit = 0.05 if printed[0] < 50 and source == "mask" else 0.5
    np.testing.assert_allclose(found, printed, atol=digit * 1.2)
