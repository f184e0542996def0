"""The kinetic-optimal path's reduction in the fused head: sum_v weights_v (1 - y cot y) p_v, y = scale_n inner_v."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow
from kernels import vocab_head


@pytest.mark.slow
def test_cotangent_reduction_and_its_gradient():
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    kernel, bias = jnp.asarray(rng.normal(size=(8, 12)), jnp.float32), jnp.zeros(12)
    inner = jnp.asarray(rng.uniform(1.2, 1.57, 10), jnp.float32)
    scale = jnp.asarray(rng.uniform(1e-4, 1.0, (2, 5)), jnp.float32)
    ids = jnp.zeros((2, 5, 1), jnp.int32)

    def fused(features, implementation):
        reduction = vocab_head.Reduction("cotangent", scale=scale, inner=jnp.pad(inner, (0, 2)))
        head = vocab_head.Head(kernel, bias, num_valid=10, block_rows=2, implementation=implementation)
        return vocab_head.log_probs(head, vocab_head.Query(ids, reduction=reduction), features).reduced

    def dense(features):
        reduction = flow.VocabReduction("cotangent", scale=scale, inner=inner)
        return flow.answer_from_logits(features @ kernel[:, :10], flow.HeadQuery(ids, reduction=reduction)).reduced

    y = np.asarray(scale, np.float64)[..., None] * np.asarray(inner, np.float64)
    probs = np.asarray(jax.nn.softmax(features @ kernel[:, :10]), np.float64)
    expected = (probs * (1 - y / np.tan(y))).sum(-1)
    slope = jax.grad(lambda f: dense(f).sum())(features)
    for name in vocab_head.IMPLEMENTATIONS:
        np.testing.assert_allclose(fused(features, name), expected, rtol=3e-5)
        np.testing.assert_allclose(jax.grad(lambda f, n=name: fused(f, n).sum())(features), slope, atol=2e-6)
