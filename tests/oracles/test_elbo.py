"""mathematics.md F(i): every bound of the mixture path, with the exact posterior as the model, has a known value.

The model's logits and all expectations are enumerated here in numpy; only the loss itself is the code under test.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadrature import tanh_sinh
from toys import ENTROPIES, TOYS, conditional_law, leave_one_out, mixture, posterior, sequences, source_law

from dfm_jax import flow

UNIFORM_GKL = {"A": 2.5809571234, "B": 5.1069653581, "C": 1.6196023627, "D": 3.5837436099, "E": 4.4746867479}
RAMP_GKL_GAP = {"A": 0.5496242, "C": 0.3371810, "D": 0.8147182}
ENTROPY_GIVEN_FIRST = {"A": 0.9203113520, "B": 2.5281085521, "D": 1.6119709085}
EXACT_ENDS = [name for name in flow.SCHEDULERS if name not in ("log_linear", "geometric")]


def source_of(name: str, vocab_size: int) -> flow.Source:
    if name == "ramp":
        return flow.CategoricalSource(source_law("ramp", vocab_size))
    return flow.get_source(name, vocab_size)


@functools.cache
def pairs(toy_name: str, source_name: str) -> tuple[np.ndarray, ...]:
    """All (state, data) index pairs with their tokens."""
    toy = TOYS[toy_name]
    states = sequences(len(source_law(source_name, toy.vocab_size)), toy.length)
    x, x_1 = (a.ravel() for a in np.indices((len(states), len(toy.data))))
    return x, x_1, states[x], toy.data[x_1]


def bound(
    toy_name: str,
    source_name: str,
    loss_name: str,
    parametrization: str,
    scheduler: flow.Scheduler,
    dtype: type,
    given: int = 0,
) -> float:
    """sum_i int_0^1 E loss dt in nats per sequence; the first `given` tokens are a prompt."""
    toy, p = TOYS[toy_name], source_law(source_name, TOYS[toy_name].vocab_size)
    source, path = source_of(source_name, toy.vocab_size), flow.MixtureDiscreteProbPath(scheduler)
    objective = flow.get_objective(loss_name, path=path, source=source, parametrization=parametrization)
    x, x_1, x_tokens, x_1_tokens = pairs(toy_name, source_name)
    model = leave_one_out if parametrization == "leave_one_out" else posterior
    kept = jnp.arange(toy.length)[None, :] < given

    @jax.jit
    def charged(logits: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
        losses = flow.loss_from_logits(objective, logits, x_1_tokens, x_tokens, flow.Time(t, r))
        return flow.uncharged(losses, jnp.broadcast_to(kept, losses.shape)).sum(axis=-1)

    total = 0.0
    for t, r, weight in zip(*tanh_sinh(), strict=True):
        kappa, sigma, *_ = scheduler.float64(t, r)
        if dtype is np.float32 and min(t, r) < 1e-12:
            continue  # beyond any time that float32 training draws; the weight there is below 1e-10
        conditional = mixture(float(kappa), float(sigma), p, toy.vocab_size)
        law = conditional_law(toy, conditional)[x, x_1] * toy.q[x_1]
        for i in range(given):
            stay = x_tokens[:, i] == x_1_tokens[:, i]
            law = np.where(stay, law / np.where(stay, conditional[x_tokens[:, i], x_1_tokens[:, i]], 1.0), 0.0)
        with np.errstate(divide="ignore"):
            logits = np.log(model(toy, conditional))
        absent = np.full((*logits.shape[:-1], source.num_states - toy.vocab_size), -np.inf)
        logits = np.concatenate([logits, absent], axis=-1)[x]
        losses = charged(jnp.asarray(logits, dtype), jnp.asarray(t, dtype), jnp.asarray(r, dtype))
        total += weight * float(law @ np.where(law > 0, np.asarray(losses, np.float64), 0.0))
    return total


CASES = [
    *((toy, "mask", "generalized_kl", "posterior", ENTROPIES[toy]) for toy in "ABCDE"),
    *((toy, "mask", "masked_elbo", "leave_one_out", ENTROPIES[toy]) for toy in "AD"),
    *((toy, "mask", "time_reversal", "leave_one_out", ENTROPIES[toy]) for toy in "A"),
    *((toy, "uniform", "time_reversal", "leave_one_out", ENTROPIES[toy]) for toy in "ABCDE"),
    *((toy, "uniform", "time_reversal", "posterior", ENTROPIES[toy]) for toy in "A"),
    *((toy, "uniform", "generalized_kl", "leave_one_out", UNIFORM_GKL[toy]) for toy in "ABCDE"),
    *((toy, "uniform", "generalized_kl", "posterior", UNIFORM_GKL[toy]) for toy in "AD"),
    *((toy, "ramp", "time_reversal", "leave_one_out", ENTROPIES[toy]) for toy in "ACD"),
    *((toy, "ramp", "generalized_kl", "leave_one_out", ENTROPIES[toy] + RAMP_GKL_GAP[toy]) for toy in "ACD"),
]


@pytest.mark.default_cases(2)
@pytest.mark.parametrize(("toy", "source", "loss", "parametrization", "value"), CASES)
def test_bound_has_its_known_value(toy, source, loss, parametrization, value):
    with jax.enable_x64(True):
        exact = bound(toy, source, loss, parametrization, flow.CondOTScheduler(), np.float64)
    assert exact == pytest.approx(value, abs=1e-7 if source == "ramp" else 1e-9)  # the digits of the tables
    rounded = bound(toy, source, loss, parametrization, flow.CondOTScheduler(), np.float32)
    assert rounded == pytest.approx(value, abs=2e-6)


@pytest.mark.default_cases(4)
@pytest.mark.parametrize("scheduler", EXACT_ENDS)
@pytest.mark.parametrize(
    ("source", "loss", "parametrization", "value"),
    [
        ("mask", "masked_elbo", "posterior", ENTROPIES["A"]),
        ("uniform", "time_reversal", "leave_one_out", ENTROPIES["A"]),
        ("uniform", "generalized_kl", "leave_one_out", UNIFORM_GKL["A"]),
    ],
)
def test_bound_does_not_depend_on_the_schedule(scheduler, source, loss, parametrization, value):
    with jax.enable_x64(True):
        chosen = flow.get_scheduler(scheduler, vocab_size=3)
        assert bound("A", source, loss, parametrization, chosen, np.float64) == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize("toy", "ABD")
def test_prompted_bound_is_the_conditional_entropy(toy):
    with jax.enable_x64(True):
        value = bound(toy, "mask", "generalized_kl", "leave_one_out", flow.CondOTScheduler(), np.float64, given=1)
    assert value == pytest.approx(ENTROPY_GIVEN_FIRST[toy], abs=1e-9)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("toy", "ABDE")
def test_count_form_is_the_entropy(toy):
    """E over n ~ U{1..L} and uniform subsets of (L/n) masked cross-entropy, by enumerating every subset."""
    law = TOYS[toy]
    mask, length = law.vocab_size, law.length
    source = flow.MaskSource(law.vocab_size)
    objective = flow.get_objective(
        "masked_count", path=flow.MixtureDiscreteProbPath(flow.CondOTScheduler()), source=source
    )
    post = posterior(law, mixture(0.5, 0.5, source_law("mask", law.vocab_size), law.vocab_size))
    place = (law.vocab_size + 1) ** np.arange(length - 1, -1, -1)
    total, square = 0.0, 0.0
    with jax.enable_x64(True):
        for subset in sequences(2, length)[1:].astype(bool):
            x_t = np.where(subset, mask, law.data)
            with np.errstate(divide="ignore"):
                logits = np.log(np.pad(post[x_t @ place], ((0, 0), (0, 0), (0, 1))))
            losses = flow.loss_from_logits(objective, jnp.asarray(logits), law.data, jnp.asarray(x_t), 0.5)
            per_data = np.where(law.q > 0, np.asarray(losses).sum(axis=-1), 0.0)
            size = int(subset.sum())
            subsets = len([s for s in sequences(2, length) if s.sum() == size])
            total += float(law.q @ per_data) / (length * subsets)
            square += float(law.q @ per_data**2) / (length * subsets)
    assert total == pytest.approx(law.entropy, abs=1e-9)
    if toy == "D":  # the variance of mathematics.md D.5, against 15 to 22 with a time
        assert square - total**2 == pytest.approx(2.76, abs=5e-3)
