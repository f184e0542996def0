"""The denoiser is the reference's: its logits, losses, gradients and one optimiser step (tests/fixtures)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_files as reference

from dfm_jax import flow
from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.models import head
from dfm_jax.models.transformer import TransformerConfig, count_parameters
from dfm_jax.optim import make_optimizer


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("source", reference.SOURCES)
def test_logits(source):
    model, (x_t, time, _) = reference.model(source), reference.inputs(source)
    logits = jax.jit(lambda model: model.logits(model(x_t, time)))(model)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, reference.load(source)["logits"], rtol=0, atol=1e-5)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("source", "remat"), [("uniform", "none"), ("mask", "none"), ("mask", "blocks"), ("mask", "dots")]
)
def test_cross_entropy_and_every_gradient(source, remat):
    model, (x_t, time, x_1) = reference.model(source, remat=remat), reference.inputs(source)

    @jax.jit
    @jax.value_and_grad
    def loss(model):
        return flow.cross_entropy(model.logits(model(x_t, time)), x_1).mean()

    value, gradient = loss(model)
    np.testing.assert_allclose(value, reference.load(source)["ce"], rtol=0, atol=1e-5)
    ours, theirs = convert.to_tensors(gradient, reference.config(source)), reference.part(source, "grad")
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=0, atol=1e-4 * np.abs(tensor).max(), err_msg=name)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("source", reference.SOURCES)
def test_generalized_kl_and_its_gradient(source, n):
    data, (x_t, _, x_1) = reference.load(source), reference.inputs(source)
    path = flow.MixtureDiscreteProbPath(flow.get_scheduler("polynomial", exponent=n))

    def loss(logits):
        per_token = flow.generalized_kl(logits, x_1, x_t, jnp.asarray(data["t_gkl"]), path)
        return per_token.mean(), per_token

    gradient, per_token = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(data["logits"]))
    np.testing.assert_allclose(per_token, data[f"gkl_{n}"], rtol=1e-5, atol=1e-5)
    expected = data[f"gkl_grad_{n}"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("implementation", ["dense", "blocks"])
@pytest.mark.parametrize("source", reference.SOURCES)
def test_the_fused_head_gives_the_same_losses(source, implementation):
    """What training computes: features, the head's answer to the objective's query, the objective."""
    data, model, (x_t, time, x_1) = reference.load(source), reference.model(source), reference.inputs(source)
    distribution = flow.get_source(source, 37)

    @jax.jit
    def losses(model):
        features = model(x_t, time)

        def loss(name, exponent):
            path = flow.MixtureDiscreteProbPath(flow.get_scheduler("polynomial", exponent=exponent))
            objective = flow.get_objective(name, path=path, source=distribution)
            t = jnp.asarray(data["t_gkl"])
            answer = head.answer(model, features, objective.query(x_1, x_t, t), implementation=implementation)
            return objective(answer, x_1, x_t, t)

        return loss("cross_entropy", 1).mean(), [loss("generalized_kl", n) for n in (1, 2, 3)]

    cross_entropy, kl = losses(model)
    np.testing.assert_allclose(cross_entropy, data["ce"], rtol=0, atol=1e-5)
    for n in (1, 2, 3):
        np.testing.assert_allclose(kl[n - 1], data[f"gkl_{n}"], rtol=1e-5, atol=1e-5)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("source", reference.SOURCES)
def test_one_adamw_step(source):
    config, model, (x_t, time, _) = reference.config(source), reference.model(source), reference.inputs(source)
    gradient = jax.tree.map(jnp.asarray, convert.from_tensors(reference.part(source, "grad"), config))
    optimizer = make_optimizer(lr=3e-4, warmup=1, grad_clip=0.0)
    updates, _ = jax.jit(optimizer.update)(gradient, jax.jit(optimizer.init)(model), model, step=1)
    model = optax.apply_updates(model, updates)
    with np.load(reference.FIXTURES / f"adamw_{source}.npz") as expected:
        for name, tensor in convert.to_tensors(model, config).items():
            np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=1e-6, err_msg=name)
        logits = jax.jit(lambda model: model.logits(model(x_t, time)))(model)
        np.testing.assert_allclose(logits, expected["logits_after"], rtol=0, atol=1e-5)


def test_the_published_models_sizes():
    assert count_parameters(TransformerConfig(50257)) == 169_625_681
    assert count_parameters(TransformerConfig(50258)) == 169_627_218


def test_padding_counts_nowhere():
    """The same number, whether the vocabulary fills its rows or not, tied or not."""
    for tied in (False, True):
        sizes = [
            count_parameters(TransformerConfig(size, hidden_size=32, n_heads=2, tie_embeddings=tied))
            for size in (127, 128, 129)
        ]
        per_state = 32 * (1 if tied else 2) + 1
        assert np.diff(sizes).tolist() == [per_state, per_state]
