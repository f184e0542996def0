"""The linear layer's product: autodiff's gradients in float32, and in bfloat16 none of the weights' rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.models.layers import affine


def plain(x, kernel, bias):
    y = jnp.tensordot(x, kernel.astype(x.dtype), axes=1, precision="highest")
    return y if bias is None else y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("out", [(5,), (3, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_are_those_of_the_definition(out, with_bias):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (4, 8, 16)), jax.random.normal(keys[1], (16, *out))
    bias = jax.random.normal(keys[2], out) if with_bias else None

    def gradients(function):
        return jax.grad(lambda *given: jnp.sin(function(*given)).sum(), argnums=(0, 1, 2))(x, kernel, bias)

    for ours, theirs in zip(jax.tree.leaves(gradients(affine)), jax.tree.leaves(gradients(plain)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_weight_gradients_of_bfloat16_products_are_not_rounded():
    # 257 rows of ones: the sum needs nine bits, bfloat16 has eight.
    x, kernel, bias = jnp.ones((257, 2), jnp.bfloat16), jnp.zeros((2, 3)), jnp.zeros((3,))
    (dkernel, dbias), dx = jax.grad(lambda given, x: affine(x, *given).astype(jnp.float32).sum(), argnums=(0, 1))(
        (kernel, bias), x
    )
    assert dkernel.dtype == dbias.dtype == jnp.float32 and dx.dtype == jnp.bfloat16
    np.testing.assert_array_equal(dkernel, 257.0)
    np.testing.assert_array_equal(dbias, 257.0)
