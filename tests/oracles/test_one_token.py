"""One token of a vocabulary of 50257 (mathematics.md D.4): the one-way uniform bound is loose by a known amount.

The exact leave-one-out law of a single token is the data law itself, so the head's answer can be written down without
logits, and the bounds are integrals over t of expectations over (x_1, z). All losses are evaluated in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadrature import tanh_sinh

from dfm_jax import flow

V = 50257


def zipf(s: float) -> np.ndarray:
    """Zipf-Mandelbrot, q ~ (rank + 1.7)^-s."""
    weights = (np.arange(1, V + 1) + 1.7) ** -s
    return weights / weights.sum()


def one_way_bound(q: np.ndarray) -> float:
    """sum_x q (1-p) (-log q) + sum_x p (1-q) f(q/p), f(a) = a log a / (a - 1), f(1) = 1, for p = 1/V."""
    a = q * V
    even = np.isclose(a, 1)
    f = np.where(even, 1.0, a * np.log(a) / np.where(even, 1.0, a - 1))
    return float((q * (1 - 1 / V) * -np.log(q)).sum() + ((1 - q) / V * f).sum())


@pytest.mark.slow
@pytest.mark.parametrize(("s", "entropy", "gap"), [(0.0, 10.825, 1.000), (1.0, 8.117, 0.558), (2.0, 2.819, 0.032)])
def test_one_way_gap_at_the_full_vocabulary(s, entropy, gap):
    q = zipf(s)
    assert -(q * np.log(q)).sum() == pytest.approx(entropy, abs=6e-4)
    assert one_way_bound(q) - entropy == pytest.approx(gap, abs=1.1e-3)
    path, source = flow.MixtureDiscreteProbPath(flow.CondOTScheduler()), flow.UniformSource(V)
    log_q = jnp.asarray(np.log(q), jnp.float32)
    gkl = flow.GeneralizedKL(path, source, "leave_one_out")
    tr = flow.TimeReversal(path, source, "leave_one_out")

    @jax.jit
    def losses(t: jax.Array, r: jax.Array, x_1: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        time = flow.Time(t, r)
        reduction = tr.query(x_1[:, :1], z[:, :1], time).reduction
        assert reduction is not None and reduction.scale is not None
        spread = jnp.log1p(reduction.scale * jnp.exp(log_q)[None, :]).sum(axis=-1, keepdims=True)
        answer = flow.HeadAnswer(jnp.stack([log_q[x_1], log_q[z]], axis=-1), jnp.broadcast_to(spread, z.shape))
        return gkl(answer, x_1, z, time), tr(answer, x_1, z, time)

    # x_1 at the quantiles of q; z is x_1, or each token once in random order, which hits every marginal evenly.
    x_1 = np.searchsorted(np.cumsum(q), (np.arange(V) + 0.5) / V).astype(np.int32)
    rng, totals = np.random.default_rng(0), np.zeros(2)
    for t, r, weight in zip(*tanh_sinh(), strict=True):
        if min(t, r) < 1e-9:
            continue
        z = rng.permutation(V).astype(np.int32)
        z = np.where(z == x_1, (z + 1) % V, z)
        for share, other in ((t + r / V, x_1), (r * (1 - 1 / V), z)):
            values = losses(*(jnp.asarray([x], jnp.float32) for x in (t, r)), x_1[None], other[None])
            totals += weight * share * np.array([np.asarray(v, np.float64).mean() for v in values])
    assert totals[0] - entropy == pytest.approx(gap, abs=2e-3)
    assert totals[1] == pytest.approx(entropy, abs=2e-3)
