"""Run in its own process by test_vocab_gpu.py: the vocabulary head's GPU kernels in jax's simulation of a GPU.

Two programs of two multiplying warpgroups and a copying one, nine pieces through a ring of four buffers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, params  # not public before jax 0.12

from kernels import vocab_head
from kernels.target import Target
from kernels.vocab_head import operations, pallas_gpu

# The simulation's values have no layout, and it knows no operation that gives them one.
pallas_gpu.plgpu.layout_cast = lambda value, layout: value
pallas_gpu.plgpu.broadcasted_iota = lambda dtype, shape, axis, layout: jax.lax.broadcasted_iota(dtype, shape, axis)
HOPPER = Target("gpu", "simulated", (9, 0))

ROWS, WIDTH, COLUMNS, VALID = 130, 160, 700, 690
rng = np.random.default_rng(0)
features = jnp.asarray(rng.normal(size=(ROWS, WIDTH)), jnp.bfloat16)
kernel = jnp.asarray(rng.normal(size=(WIDTH, COLUMNS)) * WIDTH**-0.5, jnp.bfloat16).astype(jnp.float32)
bias, amounts, scale = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in (COLUMNS, ROWS, ROWS))
weights, inner = (jnp.asarray(rng.uniform(size=COLUMNS), jnp.float32) for _ in range(2))
ids = jnp.asarray(rng.integers(0, VALID, (ROWS, 2)), jnp.int32)


def value_and_gradient(kind, implementation):
    def loss(features, kernel, bias, amounts, weights, scale, inner):
        extra = {"scale": jnp.exp(scale), "inner": inner} if kind == "log1p" else {}
        tiles = vocab_head.Tiles(columns=256 if kind is None else 128)
        head = vocab_head.Head(kernel, bias, num_valid=VALID, implementation=implementation, tiles=tiles)
        reduction = None if kind is None else vocab_head.Reduction(kind, weights, **extra)
        answer = vocab_head.log_probs(head, vocab_head.Query(ids, amounts, ids[:, 0], 5, reduction), features)
        total = (answer.at_ids * jnp.asarray([[1.0, -0.5]])).sum() + jnp.sin(answer.log_sum_exp).sum()
        return total + (0.0 if answer.reduced is None else jnp.sin(answer.reduced).sum()), answer

    run = jax.jit(jax.value_and_grad(loss, argnums=range(7), has_aux=True))
    return run(features, kernel, bias, amounts, weights, scale, inner)


def close(found, wanted, relative):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * max(1.0, np.abs(b).max()))


if __name__ == "__main__":
    for kind in (None, "log1p"):
        wanted = value_and_gradient(kind, "dense")
        operations.targets.current = lambda: HOPPER
        with params.force_gpu_interpret_mode(params.InterpretGPUParams(detect_races=True)):
            found = value_and_gradient(kind, "pallas")
            jax.block_until_ready(found)
        assert gpu_callbacks._races is not None and not gpu_callbacks._races.races_found
        close(found[0][1], wanted[0][1], 3e-6)  # float32 statistics
        close(found[1], wanted[1], 8e-3)  # dlogits are rounded to bfloat16
    print("ok")
