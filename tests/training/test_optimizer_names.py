"""Every name of `optim.name`: its direction, its state in a checkpoint, its memory; Muon's matrices each by itself."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfm_jax import config as configs
from dfm_jax import optim
from dfm_jax.checkpoints import tree_names
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.config import Config
from dfm_jax.data import Batch
from dfm_jax.experiment import conditions
from dfm_jax.models.transformer import Transformer, TransformerConfig
from dfm_jax.optim import muon
from dfm_jax.run import sizes
from dfm_jax.runtime.mesh import MeshShape, make_mesh
from dfm_jax.training.loop import make_trainer

CONFIG = TransformerConfig(37, hidden_size=32, cond_dim=16, n_blocks=3, n_heads=2)
BY_MUON = {
    "time_embedding.hidden.kernel",
    "time_embedding.out.kernel",
    "blocks.qkv.kernel",
    "blocks.attention_out.kernel",
    "blocks.mlp_up.kernel",
    "blocks.mlp_down.kernel",
    "blocks.modulation.linear.kernel",
    "final_modulation.linear.kernel",
}


def leaves(tree) -> dict[str, jax.Array]:
    return {name.removesuffix(".value"): leaf for name, leaf in tree_names.flatten(tree).items()}


@pytest.fixture(scope="module")
def gradients() -> Transformer:
    @jax.jit
    def draw() -> Transformer:
        model = Transformer(CONFIG, rngs=nnx.Rngs(0))
        keys = iter(jax.random.split(jax.random.key(1), 99))
        return jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape, jnp.float32), model)

    return draw()


def step(transformation: optax.GradientTransformation, gradients):
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(lambda x: transformation.update(x, transformation.init(x), x))(gradients)


@pytest.mark.slow
def test_muon_takes_the_matrices_of_the_inside_and_adam_the_others(gradients):
    found = leaves(jax.tree.map(lambda label: np.array(label == "muon"), muon.labels(gradients)))
    assert {name for name, taken in found.items() if taken} == BY_MUON
    direction, _ = step(muon.direction(0.9, 0.95, 1e-8), gradients)
    adam, _ = step(optax.scale_by_adam(0.9, 0.95, 1e-8), gradients)
    for name, expected in leaves(adam).items():
        if name not in BY_MUON:
            np.testing.assert_allclose(leaves(direction)[name], expected, rtol=1e-5)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five steps of the quintic iteration of Muon's authors on one matrix, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = np.asarray(matrix, np.float64)
    x = x if x.shape[0] <= x.shape[1] else x.T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def test_muon_makes_each_matrix_orthogonal_by_itself(gradients):
    """Each block's, and q, k, v, and the parts of a modulation. After one update the momentum is the gradient's."""
    direction, _ = step(muon.direction(0.9, 0.95, 1e-8), gradients)
    for name in BY_MUON:
        gradient, found = leaves(gradients)[name], leaves(direction)[name]
        if not name.startswith("blocks."):
            gradient, found = gradient[None], found[None]
        shape = gradient.shape[0], gradient.shape[1], -1, gradient.shape[-1]
        gradient, found = (np.asarray(x).reshape(shape) for x in (gradient, found))
        for block in range(shape[0]):
            for part in range(gradient.shape[2]):
                matrix = gradient[block, :, part]
                expected = 0.2 * np.sqrt(max(matrix.shape)) * newton_schulz(matrix)
                np.testing.assert_allclose(found[block, :, part], expected, atol=2e-4)
        root_mean_square = np.sqrt((found.astype(np.float64) ** 2).mean())
        assert 0.1 < root_mean_square < 0.25, name  # as an update of AdamW


def test_adafactor_keeps_means_of_rows_and_columns():
    big = {"kernel": jnp.ones((256, 512)), "bias": jnp.ones(512)}
    state = optim.make_optimizer("adafactor", lr=1.0).init(big)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 256 + 512 + 512 + 16
    updates, _ = step(optim.TABLE["adafactor"].direction(0.9, 0.95, 1e-8), {"kernel": 1e-3 * big["kernel"]})
    np.testing.assert_allclose(updates["kernel"], 1.0, rtol=1e-3)


def made(name: str, **changes) -> Config:
    fields = {
        **{"tokenizer.name": "bytes", "data.train": "none", "data.valid": "none", "training.batch_size": 4},
        **{"model.hidden_size": 32, "model.cond_dim": 16, "model.length": 16, "model.n_blocks": 2, "model.n_heads": 2},
        **{"optim.name": name, "optim.lr": 1e-3, "optim.warmup": 1, "optim.n_iters": 20, "model.dropout": 0.0},
        **{"eval.perplexity": False, "eval.elbo": False, **changes},
    }
    config = configs.replace(Config(), fields)
    conditions.check(config, "train")
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", optim.NAMES)
def test_a_run_goes_on_from_its_checkpoint(name, tmp_path):
    config = made(name)
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    trainer = make_trainer(config, 257, mesh)
    rows = np.random.default_rng(0).integers(0, 257, (4, 16), np.int32)
    batch = Batch(jnp.asarray(rows), None)
    state, losses = trainer.create(), []
    for _ in range(3):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    with Checkpoints(tmp_path / "checkpoints", keep_last=2) as store:
        store.save(3, state, metadata={"config": config.to_dict()}, block=True)
    _, restored = Checkpoints(tmp_path / "checkpoints").restore(trainer.abstract)
    jax.tree.map(np.testing.assert_array_equal, state, restored)
    further, again = (trainer.step(s, batch)[0] for s in (state, restored))
    jax.tree.map(np.testing.assert_array_equal, further, again)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", optim.NAMES)
def test_the_least_memory_is_not_more_than_the_states(name):
    config = made(name, **{"model.hidden_size": 256})
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    abstract = make_trainer(config, 257, mesh).abstract
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    least = sizes.training(config, mesh)[0].size
    # Muon's bound leaves out the second moment of embedding and head.
    assert 0.75 * whole < least <= whole


def test_other_programs_take_adams_moments_alone():
    for name in optim.NAMES:
        state = optim.make_optimizer(name, lr=1.0).init({"kernel": jnp.ones((2, 2))})
        if name == "adamw":
            optim.get_moments(state)
        else:
            with pytest.raises(ValueError, match="expected adamw"):
                optim.get_moments(state)
