"""Loss and gradient of one update, in a process of its own: `gradient.py SIZES DTYPE FILE.npz`.

SIZES is JSON: hidden_size, n_blocks, n_heads, length, batch, vocabulary. The parameters are drawn by numpy, all of them
(a fresh network's head and gates are zero, and most of its gradient with them), so they are the same on any platform.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from configs import uniform_gkl
from dfm_jax.config import freeze
from dfm_jax.data import Batch
from dfm_jax.runtime.mesh import MeshShape, make_mesh
from dfm_jax.training import step as training_step
from dfm_jax.training.loop import make_trainer


def loss_and_gradient(sizes: dict, dtype: str) -> tuple[float, np.ndarray]:
    """The loss in nats a token, and the gradient as one vector, with the products' operands in `dtype`."""
    config = uniform_gkl.get_config()
    for field in ("hidden_size", "n_blocks", "n_heads", "length"):
        config.model[field] = sizes[field]
    config.training.batch_size = sizes["batch"]
    config.model.compute_dtype, config.model.dropout = dtype, 0.0
    if jax.default_backend() == "cpu":
        config.training.unroll = 1
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    trainer = make_trainer(freeze(config), sizes["vocabulary"], mesh)
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(trainer.create().model)
    # Scales of norms begin at one, and stay near it.
    drawn = [0.02 * rng.standard_normal(x.shape, np.float32) + (np.asarray(x) == 1.0) for x in leaves]
    model = jax.tree.unflatten(structure, [jnp.asarray(x, jnp.float32) for x in drawn])
    tokens = jnp.asarray(rng.integers(0, sizes["vocabulary"], (sizes["batch"], sizes["length"])), jnp.int32)

    @jax.jit
    def run(model, tokens):
        method, settings = training_step.get_method(trainer.problem), trainer.settings
        noisy = method.corrupt(Batch(tokens), 0, trainer.problem, seed=settings.seed, dropout=settings.dropout > 0)
        return training_step.loss_and_gradient(method, model, noisy, trainer.problem, settings, mesh)

    loss, gradient = run(model, tokens)
    return float(loss), np.concatenate([np.ravel(np.asarray(g, np.float32)) for g in jax.tree.leaves(gradient)])


def main() -> None:
    loss, gradient = loss_and_gradient(json.loads(sys.argv[1]), sys.argv[2])
    np.savez(sys.argv[3], loss=loss, gradient=gradient)


if __name__ == "__main__":
    main()
