"""The noise of a batch: what is given is kept, keys alone decide, training and evaluation draw by one function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow
from dfm_jax.data import Batch
from dfm_jax.experiment.problem import Problem
from dfm_jax.runtime.rng import noise_key
from dfm_jax.training import corruption

V, ROWS, LENGTH = 7, 64, 12
TOKENS = jax.random.randint(jax.random.key(0), (ROWS, LENGTH), 0, V, jnp.int32)
GIVEN = jnp.zeros((ROWS, LENGTH), bool).at[:, :3].set(True)


def problem(loss: str, source: flow.Source, coupling: str = "independent") -> Problem:
    path = flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
    objective = flow.get_objective(loss, path=path, source=source)
    return Problem(
        path=path,
        source=source,
        objective=objective,
        parametrization="posterior",
        time_input="t",
        time_epsilon=1e-3,
        time_law="uniform",
        time_sampling="iid",
        coupling=flow.get_coupling(coupling),
    )


PROBLEMS = {
    "uniform": problem("generalized_kl", flow.UniformSource(V)),
    "count": problem("masked_count", flow.MaskSource(V)),
    "count, conditional": problem("masked_count", flow.MaskSource(V), "conditional"),
}


def corrupt(batch: Batch, made: Problem) -> corruption.NoisyBatch:
    return jax.jit(lambda b: corruption.corrupt(b, 3, made, seed=5, dropout=True))(batch)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("made", PROBLEMS.values(), ids=PROBLEMS)
def test_given_positions_are_kept_and_the_others_have_the_noise_that_they_had(made):
    plain, noisy = corrupt(Batch(TOKENS), made), corrupt(Batch(TOKENS, GIVEN), made)
    np.testing.assert_array_equal(noisy.kept, plain.kept | GIVEN)
    np.testing.assert_array_equal(noisy.x_t, jnp.where(GIVEN, TOKENS, plain.x_t))
    np.testing.assert_array_equal(noisy.weight, plain.weight)
    for a, b in zip(plain.time, noisy.time, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (noisy.x_t != TOKENS).any()


def test_the_weight_of_the_count_form_counts_masks_before_anything_is_uncovered():
    made = PROBLEMS["count"]
    given = GIVEN.at[:, :].set(jnp.arange(LENGTH) < LENGTH - 1)
    x_t, weight = corruption.x_t(TOKENS, given, TOKENS, flow.Time(*jnp.zeros((2, ROWS))), jax.random.key(1), made)
    masked = np.asarray(x_t == V)
    assert weight is not None and not masked[:, :-1].any()
    # The last position's charge, L / n where it is masked, has the mean 1: n / L is its chance to be masked.
    charges = np.concatenate(
        [
            np.where(x[:, -1] == V, w, 0.0)
            for x, w in (
                corruption.x_t(TOKENS, given, TOKENS, flow.Time(*jnp.zeros((2, ROWS))), jax.random.key(i), made)
                for i in range(60)
            )
        ]
    )
    assert abs(charges.mean() - 1) < 4 * charges.std() / len(charges) ** 0.5 < 0.2


def test_rows_have_keys_of_their_own_where_keys_are_given():
    """As in evaluation: a row's noise is its own in any batch."""
    made = PROBLEMS["uniform"]
    keys = jax.random.split(noise_key(0, "likelihood"), ROWS)
    time = flow.Time(jnp.full(ROWS, 0.5), jnp.full(ROWS, 0.5))
    x_0 = jnp.zeros_like(TOKENS)
    whole, none = corruption.x_t(TOKENS, GIVEN, x_0, time, keys, made)
    part, _ = corruption.x_t(TOKENS[5:9], GIVEN[5:9], x_0[5:9], flow.Time(time.t[5:9], time.r[5:9]), keys[5:9], made)
    np.testing.assert_array_equal(whole[5:9], part)
    assert none is None


def test_a_coupling_and_what_is_given_are_joined():
    made = dataclasses.replace(PROBLEMS["uniform"], coupling=flow.get_coupling("conditional"))
    noisy = corrupt(Batch(TOKENS, GIVEN), made)
    assert noisy.kept[:, :3].all() and noisy.kept[:, 3:].any() and not noisy.kept.all()
    np.testing.assert_array_equal(jnp.where(noisy.kept, noisy.x_t, TOKENS), TOKENS)
