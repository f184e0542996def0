"""What logits mean: the prediction of every path, and the names that version 0.1 had for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow

V = 4
CLOCK = flow.PolynomialConvexScheduler(2.0)
MASK, UNIFORM = flow.MaskSource(V), flow.UniformSource(V)
X_T, T = jnp.asarray([[0, 3], [2, 2]], jnp.int32), jnp.asarray([0.3, 0.8])
MIXTURE = flow.MixtureDiscreteProbPath(CLOCK)


@pytest.mark.parametrize("parametrization", ["posterior", "leave_one_out"])
@pytest.mark.parametrize("suppress", [False, True])
def test_the_mixtures_prediction(parametrization, suppress):
    loo = parametrization == "leave_one_out"
    masked = MIXTURE.prediction(MASK, parametrization, suppress)
    assert masked.suppress == (V if loo or suppress else None)
    assert masked.carries_all_but == (V if loo else None) and masked.shift is None
    uniform = MIXTURE.prediction(UNIFORM, parametrization, suppress)
    assert uniform.suppress is None and not uniform.carries_over
    if not loo:
        assert uniform.shift is None
        return
    kappa = np.asarray(T, np.float64)[:, None] ** 2
    expected = np.log1p(kappa / ((1 - kappa) / V)) * np.ones(2)
    np.testing.assert_allclose(uniform.shift(X_T, T), expected, rtol=1e-6)


def test_three_terms_carry_nothing_over_and_leave_the_mask_alone():
    path = flow.ThreeTermProbPath(CLOCK, V, 0.5)
    prediction = path.prediction(MASK, "leave_one_out")
    assert prediction.suppress == V and not prediction.carries_over
    shift = prediction.shift(jnp.asarray([[V, 1]], jnp.int32), jnp.asarray([0.5]))
    assert shift[0, 0] == 0 and shift[0, 1] > 0


def test_carry_over_keeps_what_is_shown():
    drawn, x_t = jnp.asarray([1, 2, 3]), jnp.asarray([V, 0, V])
    np.testing.assert_array_equal(MIXTURE.prediction(MASK, "leave_one_out").carry_over(drawn, x_t), [1, 0, 3])
    np.testing.assert_array_equal(MIXTURE.prediction(MASK).carry_over(drawn, x_t), drawn)


def test_posterior_logits_are_the_networks_own_where_it_says_the_posterior():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, V)), jnp.float32)
    np.testing.assert_array_equal(MIXTURE.prediction(UNIFORM).posterior_logits(logits, X_T, T), logits)
    shifted = MIXTURE.prediction(UNIFORM, "leave_one_out").posterior_logits(logits, X_T, T)
    np.testing.assert_array_equal(shifted, flow.to_posterior(logits, X_T, T, MIXTURE, UNIFORM))
    assert (np.asarray(shifted != logits).sum(-1) == 1).all()
    with pytest.raises(ValueError, match="logits of shape"):
        MIXTURE.prediction(UNIFORM).posterior_logits(logits[:, :1], X_T, T)


def test_what_has_no_leave_one_out_logits_says_so():
    path = flow.MetricProbPath(CLOCK, np.eye(V))
    with pytest.raises(ValueError, match="parametrization = 'leave_one_out'"):
        path.loo_logit_shift(X_T, T, UNIFORM)
    with pytest.raises(ValueError, match="parametrization = 'other'"):
        MIXTURE.prediction(UNIFORM, "other")


def test_a_path_of_version_0_1():
    from dfm_jax.flow.path_base import GeneralPath, PathCrossEntropy, clock, find_objective, find_step

    class Old(GeneralPath):
        def check(self, source, parametrization):
            pass

        def sample(self, key, x_0, x_1, t):
            return flow.PathSample(x_0, x_1, x_0, t)

        def log_evidence(self, x_t, t, source):
            kappa, sigma, _ = clock(self, t, x_t.shape)
            return jnp.broadcast_to(jnp.log1p(kappa * source.vocab_size / sigma), x_t.shape)

        def get_objective(self, name, source, parametrization, suppress_mask):
            return find_objective(self, {}, name, source, parametrization, suppress_mask)

        def get_step(self, name):
            return find_step(self, {}, name)

    old = Old(CLOCK)
    objective = flow.get_objective("cross_entropy", path=old, source=UNIFORM, parametrization="leave_one_out")
    assert isinstance(objective, PathCrossEntropy)
    logits = jnp.zeros((2, 2, V))
    found = flow.loss_from_logits(objective, logits, X_T, X_T, T)
    np.testing.assert_allclose(found, flow.cross_entropy(flow.to_posterior(logits, X_T, T, MIXTURE, UNIFORM), X_T))
    np.testing.assert_array_equal(old.loo_logit_shift(X_T, T, UNIFORM), MIXTURE.log_evidence(X_T, T, UNIFORM))
    with pytest.raises(ValueError, match="loss = 'generalized_kl' on Old"):
        flow.get_objective("generalized_kl", path=old, source=UNIFORM)


def test_steps_of_a_user_under_either_name():
    class Jump:
        words, fresh = 1, "none"

        def plan(self, scheduler, source, grid):
            return flow.Exact().plan(scheduler, source, grid)

        def decide(self, row, z, u, source):
            return u[0] < row["jump"]

        def move(self, row, z, x_1, u, y, source):
            return jnp.where(u[0] < row["jump"], x_1, z)

    class Renoise(flow.Step):
        """It needs no model."""

        needs = flow.Needs.NOTHING
        words, fresh = 1, "source"

        def plan(self, scheduler, source, grid):
            return flow.Exact().plan(scheduler, source, grid)

        def transition(self, row, z, x_1, u, y, source):
            return jnp.where(u[0] < 0.5, y, z)

    def model(x, t):
        return jnp.broadcast_to(jnp.arange(V, dtype=jnp.float32), (*x.shape, V))

    def no_model(x, t):
        raise AssertionError("the model is run")

    key, x_0 = jax.random.key(0), jnp.zeros((3, 4), jnp.int32)
    ours, theirs = (
        flow.Solver(model, MIXTURE, UNIFORM, step=step).sample(key, x_0, steps=4) for step in ("exact", Jump())
    )
    np.testing.assert_array_equal(ours, theirs)
    found = flow.Solver(no_model, MIXTURE, UNIFORM, step=Renoise()).sample(key, x_0, steps=8)
    assert len(np.unique(found)) > 1
