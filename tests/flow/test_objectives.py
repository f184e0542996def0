"""Losses: the reference's own numbers, the two parametrisations against each other, and the head's contract."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
PATH = flow.MixtureDiscreteProbPath(flow.PolynomialConvexScheduler(2.0))
V = 7
SOURCES = {
    "mask": flow.MaskSource(V),
    "uniform": flow.UniformSource(V),
    "ramp": flow.CategoricalSource(np.arange(1, V + 1) / 28),
}


def batch(source: flow.Source, rows: int = 6, length: int = 5) -> tuple[jax.Array, ...]:
    t = jnp.linspace(0.05, 0.95, rows)
    x_1 = jax.random.randint(jax.random.key(0), (rows, length), 0, source.vocab_size, jnp.int32)
    x_t = PATH.sample(jax.random.key(1), source.sample(jax.random.key(2), x_1.shape), x_1, t).x_t
    return jax.random.normal(jax.random.key(3), (rows, length, source.num_states)) * 2, x_1, x_t, t


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_the_reference_losses_and_gradients(source):
    saved = np.load(FIXTURES / f"transformer_{source}.npz")
    logits, x_1 = jnp.asarray(saved["logits"]), jnp.asarray(saved["x_1"], jnp.int32)
    x_t, t = jnp.asarray(saved["x_t"], jnp.int32), jnp.asarray(saved["t_gkl"])
    assert float(flow.cross_entropy(logits, x_1).mean()) == pytest.approx(float(saved["ce"]), rel=1e-6)
    for n in (1, 2, 3):
        path = flow.MixtureDiscreteProbPath(flow.PolynomialConvexScheduler(n))
        loss = flow.generalized_kl(logits, x_1, x_t, t, path)
        np.testing.assert_allclose(loss, saved[f"gkl_{n}"], rtol=2e-5, atol=1e-6)
        gradient = jax.grad(lambda x, path=path: flow.generalized_kl(x, x_1, x_t, t, path).mean())(logits)
        np.testing.assert_allclose(gradient, saved[f"gkl_grad_{n}"], rtol=2e-4, atol=1e-7)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("source_name", SOURCES)
@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_corrupted", "generalized_kl", "time_reversal"])
def test_closed_forms_are_the_loss_of_the_converted_logits(name, source_name):
    source = SOURCES[source_name]
    logits, x_1, x_t, t = batch(source)
    converted = flow.to_posterior(logits, x_t, t, PATH, source)
    direct = flow.get_objective(name, path=PATH, source=source, parametrization="leave_one_out")
    by_posterior = flow.get_objective(name, path=PATH, source=source)
    np.testing.assert_allclose(
        flow.loss_from_logits(direct, logits, x_1, x_t, t),
        flow.loss_from_logits(by_posterior, converted, x_1, x_t, t),
        rtol=2e-4,
        atol=2e-5,
    )


@pytest.mark.parametrize("source_name", SOURCES)
def test_to_posterior_is_bayes(source_name):
    source = SOURCES[source_name]
    logits, _, x_t, t = batch(source)
    xhat = np.array(jax.nn.softmax(logits, axis=-1), np.float64)
    if source_name == "mask":
        xhat[..., V] = 0
    kappa = np.asarray(PATH.scheduler(t).alpha_t, np.float64)[:, None, None]
    states = np.arange(source.num_states)
    p_z = np.asarray(source.probs(x_t), np.float64)[..., None]
    weights = xhat * (kappa * (states == np.asarray(x_t)[..., None]) + (1 - kappa) * p_z)
    if source_name == "mask":  # a token of probability 0 under the network is still carried over
        weights = np.where(np.asarray(x_t != V)[..., None], states == np.asarray(x_t)[..., None], weights)
    expected = weights / weights.sum(axis=-1, keepdims=True)
    post = jax.nn.softmax(flow.to_posterior(logits, x_t, t, PATH, source), axis=-1)
    np.testing.assert_allclose(post, expected, rtol=1e-4, atol=1e-6)
    at_end = jax.nn.softmax(flow.to_posterior(logits, x_t, jnp.ones(6), PATH, source), axis=-1)
    if source_name != "mask":
        np.testing.assert_allclose(jnp.take_along_axis(at_end, x_t[..., None], axis=-1), 1)


def test_unmasked_positions_are_carried_over():
    source = SOURCES["mask"]
    logits, x_1, x_t, t = batch(source)
    for name in ("cross_entropy", "generalized_kl", "time_reversal", "masked_elbo"):
        objective = flow.get_objective(name, path=PATH, source=source, parametrization="leave_one_out")
        loss = flow.loss_from_logits(objective, logits, x_1, x_t, t)
        assert (loss[x_t != V] == 0).all() and (loss[x_t == V] > 0).all()
        # The mask's own logit does not exist for such a network.
        np.testing.assert_array_equal(loss, flow.loss_from_logits(objective, logits.at[..., V].set(50.0), x_1, x_t, t))


def test_masked_bounds_agree():
    source = SOURCES["mask"]
    logits, x_1, x_t, t = batch(source)
    elbo = flow.masked_elbo(logits, x_1, x_t, t, PATH, source)
    np.testing.assert_allclose(elbo, flow.time_reversal_bound(logits, x_1, x_t, t, PATH, source), rtol=1e-6)
    loo = flow.get_objective("generalized_kl", path=PATH, source=source, parametrization="leave_one_out")
    np.testing.assert_allclose(elbo, flow.loss_from_logits(loo, logits, x_1, x_t, t), rtol=1e-6)
    log_1 = jnp.take_along_axis(jax.nn.log_softmax(logits[..., :V]), x_1[..., None], axis=-1)[..., 0]
    rate = PATH.scheduler.jump_rate(t)[:, None]
    np.testing.assert_allclose(elbo, jnp.where(x_t == V, -rate * log_1, 0.0), rtol=1e-5)
    objective = flow.get_objective("masked_elbo", path=PATH, source=source)
    free = flow.loss_from_logits(objective, logits, x_1, x_t, t)
    assert (free >= elbo - 1e-6).all()  # a free mask logit can only cost


def test_corrupted_only_forgets_the_rest():
    source = SOURCES["uniform"]
    logits, x_1, x_t, t = batch(source)
    objective = flow.get_objective("cross_entropy_corrupted", path=PATH, source=source)
    loss = flow.loss_from_logits(objective, logits, x_1, x_t, t)
    np.testing.assert_allclose(loss, jnp.where(x_t == x_1, 0.0, flow.cross_entropy(logits, x_1)), rtol=1e-6)


def test_count_form_weights_by_the_masked_fraction():
    source = SOURCES["mask"]
    logits, x_1, x_t, t = batch(source)
    objective = flow.get_objective("masked_count", path=PATH, source=source, suppress_mask=True)
    loss = flow.loss_from_logits(objective, logits, x_1, x_t, t)
    log_1 = jnp.take_along_axis(jax.nn.log_softmax(logits[..., :V]), x_1[..., None], axis=-1)[..., 0]
    weight = 5 / np.maximum(np.asarray(x_t == V).sum(-1, keepdims=True), 1)
    np.testing.assert_allclose(loss, np.where(x_t == V, -log_1 * weight, 0.0), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("source_name", ["uniform", "ramp"])
def test_losses_are_never_negative(source_name):
    source = SOURCES[source_name]
    logits, x_1, x_t, t = batch(source, rows=64)
    for parametrization in ("posterior", "leave_one_out"):
        for name in ("cross_entropy", "generalized_kl", "time_reversal"):
            objective = flow.get_objective(name, path=PATH, source=source, parametrization=parametrization)
            assert flow.loss_from_logits(objective, logits * 3, x_1, x_t, t).min() > -1e-5


def test_bfloat16_logits_are_widened_first():
    source = SOURCES["uniform"]
    logits, x_1, x_t, t = batch(source)
    rounded = logits.astype(jnp.bfloat16)
    loss = flow.generalized_kl(rounded, x_1, x_t, t, PATH)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, flow.generalized_kl(rounded.astype(jnp.float32), x_1, x_t, t, PATH))


def test_head_answers_by_its_definition():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    ids = jnp.array([[[0, 1], [1, 2], [2, 3]], [[3, 0], [0, 0], [4, 1]]])
    weights, inner = np.arange(5, dtype=np.float32), np.linspace(0.5, 2, 5, dtype=np.float32)
    scale = np.arange(6, dtype=np.float32).reshape(2, 3)
    shift = jnp.linspace(-2, 2, 6).reshape(2, 3)
    changed = np.array(logits)
    changed[np.arange(2)[:, None], np.arange(3)[None, :], np.asarray(ids[..., 0])] += np.asarray(shift)
    changed[..., 4] = -np.inf
    probs = np.exp(changed) / np.exp(changed).sum(-1, keepdims=True)
    for kind, expected in {
        "log1p": (weights * np.log1p(scale[..., None] * inner * probs)).sum(-1),
        "linear": (weights * probs).sum(-1),
    }.items():
        reduction = flow.VocabReduction(kind, *map(jnp.asarray, (weights, scale, inner)))
        answer = flow.answer_from_logits(logits, flow.HeadQuery(ids, shift, ids[..., 0], 4, reduction))
        assert answer.reduced is not None
        np.testing.assert_allclose(answer.reduced, expected, rtol=1e-5)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(answer.at_ids, np.log(np.take_along_axis(probs, np.asarray(ids), -1)), rtol=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: flow.get_objective("hinge", path=PATH, source=SOURCES["mask"]),
        lambda x: flow.get_objective("masked_elbo", path=PATH, source=SOURCES["uniform"]),
        lambda x: flow.get_objective("masked_count", path=PATH, source=SOURCES["uniform"]),
        lambda x: flow.get_objective("cross_entropy", path=PATH, source=SOURCES["mask"], parametrization="score"),
        lambda x: flow.masked_elbo(jnp.zeros((2, 3, V)), x, x, 0.5, PATH, SOURCES["mask"]),
        lambda x: flow.to_posterior(jnp.zeros((2, 3, V + 1)), x, 0.5, PATH, SOURCES["uniform"]),
        lambda x: flow.generalized_kl(jnp.zeros((2, 4, V)), x, x, 0.5, PATH),
        lambda x: flow.generalized_kl(jnp.zeros((2, 3, V)), x, x, 1.5, PATH),
        lambda x: flow.time_reversal_bound(jnp.zeros((2, 3, V)), x, x, jnp.zeros((2, 3, 1)), PATH, SOURCES["uniform"]),
        lambda x: flow.answer_from_logits(
            jnp.zeros((2, 3, V)), flow.HeadQuery(x[..., None], reduction=flow.VocabReduction("max"))
        ),
        lambda x: flow.answer_from_logits(jnp.zeros((2, 4, V)), flow.HeadQuery(x[..., None])),
    ],
)
def test_bad_input_says_what_is_accepted(call):
    with pytest.raises(ValueError, match=r"expected|expected"):
        call(jnp.zeros((2, 3), jnp.int32))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("source_name", SOURCES)
@pytest.mark.parametrize("parametrization", ["posterior", "leave_one_out"])
def test_logits_of_minus_infinity_never_give_nan(source_name, parametrization):
    source = SOURCES[source_name]
    logits, x_1, x_t, t = batch(source)
    states = jnp.arange(source.num_states)[None, None, :]
    impossible = (states % 2 == 0) & (states != x_1[..., None])
    for name in ("cross_entropy", "generalized_kl", "time_reversal"):
        objective = flow.get_objective(name, path=PATH, source=source, parametrization=parametrization)
        loss, gradient = jax.value_and_grad(
            lambda x, objective=objective: flow.loss_from_logits(objective, x, x_1, x_t, t).sum()
        )(jnp.where(impossible, -jnp.inf, logits))
        assert jnp.isfinite(loss) and jnp.isfinite(gradient).all(), name
