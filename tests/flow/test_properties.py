"""What holds for any logits and any time: symmetry, independence, conservation, and one program per shape."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from dfm_jax import flow

V, ROWS, LENGTH = 6, 3, 4
LAW = np.arange(1, V + 1) / 21
PATH = flow.MixtureDiscreteProbPath(flow.CosineMD4Scheduler())
SOURCES = {"mask": flow.MaskSource(V), "uniform": flow.UniformSource(V), "ramp": flow.CategoricalSource(LAW)}
OBJECTIVES = {
    (name, source, parametrization): flow.get_objective(
        name, path=PATH, source=SOURCES[source], parametrization=parametrization
    )
    for name in ("cross_entropy", "generalized_kl", "time_reversal")
    for source in SOURCES
    for parametrization in ("posterior", "leave_one_out")
}
VELOCITIES = [
    flow.ForwardVelocity(),
    flow.divergence_free(0.5),
    flow.DetailedBalanceVelocity(2.0),
    flow.TimeReversalVelocity(),
]
seeds = st.integers(0, 2**31 - 1)
times = st.floats(1 / 64, 63 / 64, width=32)
few = hypothesis.settings(max_examples=6)


@jax.jit
def all_losses(logits: dict, x_1: jax.Array, x_t: dict, t: jax.Array) -> dict:
    return {
        key: flow.loss_from_logits(objective, logits[key[1]], x_1, x_t[key[1]], t)
        for key, objective in OBJECTIVES.items()
    }


def problem(seed: int, time: float) -> tuple[dict, jax.Array, dict, jax.Array]:
    """Logits, x_1, x_t and t, for each source."""
    rng = np.random.default_rng(seed)
    t = jnp.asarray(np.clip(time + np.array([0.0, 0.005, -0.005]), 0, 1), jnp.float32)
    x_1 = jnp.asarray(rng.integers(0, V, (ROWS, LENGTH)), jnp.int32)
    logits, x_t = {}, {}
    laws = {"mask": np.eye(V + 1)[V], "uniform": np.full(V, 1 / V), "ramp": LAW}
    for name, source in SOURCES.items():
        states = source.num_states
        logits[name] = jnp.asarray(3 * rng.normal(size=(ROWS, LENGTH, states)), jnp.float32)
        noise = rng.choice(states, (ROWS, LENGTH), p=laws[name])
        x_t[name] = jnp.asarray(np.where(rng.random((ROWS, LENGTH)) < 0.5, x_1, noise), jnp.int32)
    return logits, x_1, x_t, t


@pytest.mark.slow
@few
@hypothesis.given(seeds, times)
def test_relabelling_the_vocabulary_changes_nothing(seed, time):
    logits, x_1, x_t, t = problem(seed, time)
    order = np.random.default_rng(seed).permutation(V)  # new label of token v
    before = all_losses(logits, x_1, x_t, t)
    for (name, source, parametrization), loss in before.items():
        relabel = np.append(order, V) if source == "mask" else order
        moved = jnp.zeros_like(logits[source]).at[..., relabel].set(logits[source])
        renamed = jnp.asarray(relabel, jnp.int32)
        law = SOURCES[source] if source != "ramp" else flow.CategoricalSource(LAW[np.argsort(order)])
        objective = flow.get_objective(name, path=PATH, source=law, parametrization=parametrization)
        after = flow.loss_from_logits(objective, moved, renamed[x_1], renamed[x_t[source]], t)
        np.testing.assert_allclose(after, loss, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
@few
@hypothesis.given(seeds, times)
def test_rows_and_positions_are_independent(seed, time):
    logits, x_1, x_t, t = problem(seed, time)
    whole = all_losses(logits, x_1, x_t, t)
    for (name, source, parametrization), loss in whole.items():
        objective = OBJECTIVES[name, source, parametrization]
        one = flow.loss_from_logits(objective, logits[source][1:2, 2:3], x_1[1:2, 2:3], x_t[source][1:2, 2:3], t[1:2])
        np.testing.assert_allclose(one[0, 0], loss[1, 2], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@hypothesis.settings(max_examples=3)
@hypothesis.given(seeds, times)
def test_jit_vmap_and_a_plain_loop_agree(seed, time):
    logits, x_1, x_t, t = problem(seed, time)
    compiled = all_losses(logits, x_1, x_t, t)
    with jax.disable_jit():
        chex.assert_trees_all_close(all_losses(logits, x_1, x_t, t), compiled, rtol=2e-5, atol=2e-5)
    mapped = jax.vmap(all_losses)(logits, x_1, x_t, t)
    chex.assert_trees_all_close(mapped, compiled, rtol=2e-5, atol=2e-5)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("source_name", SOURCES)
@hypothesis.settings(max_examples=4)
@hypothesis.given(seeds, times)
def test_velocities_conserve_probability(source_name, seed, time):
    logits, _, x_t, t = problem(seed, time)
    for velocity in VELOCITIES:
        rates = np.asarray(velocity(logits[source_name], x_t[source_name], t, PATH, SOURCES[source_name]))
        here = np.eye(rates.shape[-1], dtype=bool)[np.asarray(x_t[source_name])]
        assert (rates[~here] >= 0).all() and np.isfinite(rates).all()
        np.testing.assert_allclose(rates.sum(axis=-1), 0, atol=1e-5 * max(1.0, np.abs(rates).max()))


@few
@hypothesis.given(seeds, times)
def test_minimiser_of_the_losses_is_the_posterior(seed, time):
    """At one corrupted position with truth drawn from `law`, no logits do better than Bayes' rule, for any loss."""
    rng = np.random.default_rng(seed)
    law, source = rng.dirichlet(np.ones(V)), SOURCES["uniform"]
    x_1 = jnp.arange(V, dtype=jnp.int32)[:, None]
    best, other = jnp.asarray(np.log(law), jnp.float32), jnp.asarray(rng.normal(size=V), jnp.float32)
    kappa = float(PATH.scheduler(time).alpha_t)
    joint = law[:, None] * (kappa * np.eye(V) + (1 - kappa) / V)  # x_1 by z
    for name in ("cross_entropy", "generalized_kl", "time_reversal"):
        objective = OBJECTIVES[name, "uniform", "leave_one_out"]
        mean = {}
        for label, logits in (("best", best), ("other", other)):
            full = jnp.broadcast_to(logits, (V, 1, V))
            loss = [
                flow.loss_from_logits(objective, full, x_1, jnp.full((V, 1), z, jnp.int32), jnp.full(V, time))
                for z in range(V)
            ]
            mean[label] = float((joint * np.asarray(loss)[:, :, 0].T).sum())
        assert mean["best"] <= mean["other"] + 1e-5, (name, source)


def test_one_program_per_shape():
    chex.clear_trace_counter()
    counted = jax.jit(chex.assert_max_traces(_sampled_loss, n=1))
    for seed in range(4):
        key, t = jax.random.key(seed), jnp.full(ROWS, 0.1 + 0.2 * seed)
        x_1 = jax.random.randint(key, (ROWS, LENGTH), 0, V, jnp.int32)
        assert jnp.isfinite(counted(key, jnp.zeros((ROWS, LENGTH, V)), x_1, t)).all()


def _sampled_loss(key: jax.Array, logits: jax.Array, x_1: jax.Array, t: jax.Array) -> jax.Array:
    x_0 = SOURCES["uniform"].sample(key, x_1.shape)
    x_t = PATH.sample(jax.random.fold_in(key, 1), x_0, x_1, t).x_t
    return flow.time_reversal_bound(logits, x_1, x_t, t, PATH, SOURCES["uniform"])
