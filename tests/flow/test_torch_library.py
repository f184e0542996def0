"""The same numbers as the PyTorch library `flow_matching`, where the two mean the same thing."""

import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow

pytestmark = [pytest.mark.torch, pytest.mark.slow]
torch = pytest.importorskip("torch")
pytest.importorskip("flow_matching")

PAIRS = [
    ("CondOTScheduler", (), flow.CondOTScheduler()),
    ("PolynomialConvexScheduler", (1.0,), flow.PolynomialConvexScheduler(1.0)),
    ("PolynomialConvexScheduler", (2,), flow.PolynomialConvexScheduler(2)),
    ("PolynomialConvexScheduler", (3.5,), flow.PolynomialConvexScheduler(3.5)),
]


@pytest.mark.parametrize(("name", "arguments", "ours"), PAIRS)
def test_schedulers(name, arguments, ours):
    from flow_matching.path import scheduler

    theirs = getattr(scheduler, name)(*arguments)
    t = np.linspace(0.05, 0.95, 11, dtype=np.float32)
    expected, out = theirs(torch.tensor(t)), ours(jnp.asarray(t))
    for field in ("alpha_t", "sigma_t", "d_alpha_t", "d_sigma_t"):
        np.testing.assert_allclose(getattr(out, field), getattr(expected, field).numpy(), rtol=2e-6, err_msg=field)
    kappa = np.linspace(0.0, 1.0, 11, dtype=np.float32)
    np.testing.assert_allclose(
        ours.kappa_inverse(jnp.asarray(kappa)), theirs.kappa_inverse(torch.tensor(kappa)).numpy(), atol=5e-7
    )
    snr = np.array([0.01, 0.5, 1.0, 3.0, 50.0], np.float32)
    np.testing.assert_allclose(
        ours.snr_inverse(jnp.asarray(snr)), theirs.snr_inverse(torch.tensor(snr)).numpy(), rtol=2e-6
    )


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_mixture_path(exponent):
    from flow_matching.loss import MixturePathGeneralizedKL
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 6, 9)).astype(np.float32)
    x_1, x_t = rng.integers(0, 9, (2, 4, 6))
    t = np.array([0.1, 0.4, 0.7, 0.97], np.float32)
    theirs = MixtureDiscreteProbPath(PolynomialConvexScheduler(exponent))
    ours = flow.MixtureDiscreteProbPath(flow.PolynomialConvexScheduler(exponent))
    ids = [jnp.asarray(x, jnp.int32) for x in (x_1, x_t)]
    expected = MixturePathGeneralizedKL(theirs, reduction="none")(*map(torch.tensor, (logits, x_1, x_t, t)))
    loss = flow.generalized_kl(jnp.asarray(logits), *ids, jnp.asarray(t), ours)
    np.testing.assert_allclose(loss, expected.numpy(), rtol=2e-5, atol=1e-6)
    velocity = theirs.posterior_to_velocity(torch.tensor(logits), torch.tensor(x_t), torch.tensor(t)[:, None])
    np.testing.assert_allclose(
        ours.posterior_to_velocity(jnp.asarray(logits), ids[1], jnp.asarray(t)), velocity.numpy(), rtol=2e-5, atol=1e-5
    )
