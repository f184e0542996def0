"""mathematics.md F(iii): every velocity, averaged over the exact posterior, moves p_t as the path does: dp/dt = U p.

p_t and dp/dt are enumerated from the definition of the path; only the rates are the code under test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import TOYS, marginal_law, mixture, posterior, sequences, source_law

from dfm_jax import flow

TIMES = (0.05, 0.2, 0.5, 0.8, 0.95)
VELOCITIES = {
    "forward": flow.ForwardVelocity(),
    "divergence_free": flow.divergence_free(0.7),
    "divergence_free_schedule": flow.divergence_free(lambda t: 10 * t**0.25 * (1 - t) ** 0.25),
    "detailed_balance": flow.DetailedBalanceVelocity(3.0),
    "time_reversal": flow.TimeReversalVelocity(),
}
MASK_SCHEDULERS = [name for name in flow.SCHEDULERS if name != "kinetic_optimal_mask"]
CASES = [
    *(("mask", name, "forward") for name in MASK_SCHEDULERS),
    *(("mask", "linear", velocity) for velocity in VELOCITIES if velocity != "forward"),
    *(
        (source, name, velocity)
        for source in ("uniform", "ramp")
        for name, velocity in [
            *(("linear", velocity) for velocity in VELOCITIES),
            ("cosine_md4", "forward"),
            ("polynomial", "time_reversal"),
        ]
    ),
]


def generator(rates: np.ndarray, states: int) -> np.ndarray:
    """U[Y, X]: the rate from sequence X to Y, one position at a time, from per-position rates (S**L, L, S)."""
    sequences_, length, _ = rates.shape
    tokens = sequences(states, length)
    place = states ** np.arange(length - 1, -1, -1)
    matrix = np.zeros((sequences_, sequences_))
    for x, position, y in np.ndindex(*rates.shape):
        target = x + (y - tokens[x, position]) * place[position]
        matrix[target, x] += rates[x, position, y]
    return matrix


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("toy_name", "AD")
@pytest.mark.parametrize(("source_name", "scheduler_name", "velocity_name"), CASES)
def test_velocity_generates_the_path(toy_name, source_name, scheduler_name, velocity_name):
    toy, p = TOYS[toy_name], source_law(source_name, TOYS[toy_name].vocab_size)
    scheduler = flow.get_scheduler(
        scheduler_name, exponent=2 if scheduler_name in ("polynomial", "one_minus_power") else 1, vocab_size=3
    )
    path = flow.MixtureDiscreteProbPath(scheduler)
    source = flow.CategoricalSource(p) if source_name == "ramp" else flow.get_source(source_name, toy.vocab_size)
    tokens = sequences(len(p), toy.length)

    def law(t: float) -> np.ndarray:
        kappa, sigma, *_ = scheduler.float64(t)
        return marginal_law(toy, mixture(float(kappa), float(sigma), p, toy.vocab_size))

    with jax.enable_x64(True):
        for t in TIMES:
            kappa, sigma, *_ = scheduler.float64(t)
            post = posterior(toy, mixture(float(kappa), float(sigma), p, toy.vocab_size))
            with np.errstate(divide="ignore"):
                logits = np.log(np.pad(post, ((0, 0), (0, 0), (0, len(p) - toy.vocab_size))))
            rates = np.asarray(VELOCITIES[velocity_name](jnp.asarray(logits), jnp.asarray(tokens), t, path, source))
            here = np.eye(len(p), dtype=bool)[tokens]
            assert rates[~here].min() >= 0
            np.testing.assert_allclose(rates.sum(axis=-1), 0, atol=1e-12 * max(1, rates.max()))
            h = 1e-4
            slope = (8 * (law(t + h) - law(t - h)) - (law(t + 2 * h) - law(t - 2 * h))) / (12 * h)
            reachable = np.where(law(t)[:, None, None] > 0, rates, 0.0)
            assert np.abs(slope - generator(reachable, len(p)) @ law(t)).max() < 1e-10


@pytest.mark.parametrize("toy_name", "AD")
@pytest.mark.parametrize("source_name", ["mask", "uniform", "ramp"])
def test_equal_predictor_and_corrector_hold_the_law_still(toy_name, source_name):
    toy, p = TOYS[toy_name], source_law(source_name, TOYS[toy_name].vocab_size)
    conditional = mixture(0.3, 0.7, p, toy.vocab_size)
    source = flow.CategoricalSource(p) if source_name == "ramp" else flow.get_source(source_name, toy.vocab_size)
    tokens, law = sequences(len(p), toy.length), marginal_law(toy, conditional)
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        logits = np.log(np.pad(posterior(toy, conditional), ((0, 0), (0, 0), (0, len(p) - toy.vocab_size))))
        rates = flow.CorrectorVelocity(2.0, 2.0)(
            jnp.asarray(logits), jnp.asarray(tokens), 0.3, flow.MixtureDiscreteProbPath(flow.CondOTScheduler()), source
        )
    assert np.abs(generator(np.asarray(rates), len(p)) @ law).max() < 1e-14
