"""The PyTorch library's Euler solver, run on the exact posterior, against the enumerated law of `step='euler'`."""

import numpy as np
import pytest
from oracles import toys, transitions
from oracles.test_sampler_frequencies import counts_of, excess
from oracles.test_solver_transitions import euler

torch = pytest.importorskip("torch")
pytest.importorskip("flow_matching")

from flow_matching.path import MixtureDiscreteProbPath  # noqa: E402
from flow_matching.path.scheduler import PolynomialConvexScheduler  # noqa: E402
from flow_matching.solver import MixtureDiscreteEulerSolver  # noqa: E402
from flow_matching.utils import ModelWrapper  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]
STEPS, SEQUENCES = 4, 60_000


class Exact(ModelWrapper):
    """Posterior probabilities from the tables, on the grid j / STEPS."""

    def __init__(self, source, states, length):
        super().__init__(torch.nn.Identity())
        tables = [transitions.posterior("D", source, j / STEPS) for j in range(STEPS)]
        self.tables = torch.tensor(np.stack(tables), dtype=torch.float32)
        self.weights = torch.tensor(states ** np.arange(length - 1, -1, -1))

    def forward(self, x, t, **extras):
        return self.tables[round(float(t[0]) * STEPS), (x * self.weights).sum(-1)]


@pytest.mark.parametrize("source", ["mask", "uniform"])
@pytest.mark.parametrize("c", [0.0, 1.0])
def test_the_reference_samples_our_law(source, c):
    """div_free is turned on after t = 0, where the reference divides by zero (its defect, not its law)."""
    toy = toys.TOYS["D"]
    p = toys.source_law(source, 3)
    torch.manual_seed(0)
    solver = MixtureDiscreteEulerSolver(
        model=Exact(source, len(p), toy.length),
        path=MixtureDiscreteProbPath(PolynomialConvexScheduler(n=1.0)),
        vocabulary_size=len(p),
        source_distribution_p=torch.tensor(p, dtype=torch.float32),
    )
    x_init = torch.multinomial(torch.tensor(p), SEQUENCES * toy.length, replacement=True).reshape(SEQUENCES, -1)
    x = solver.sample(x_init, step_size=1 / STEPS, div_free=lambda t: 0.0 if float(t) == 0.0 else c)
    law = transitions.run("D", source, euler(lambda t: c if t > 0 else 0.0)(STEPS))
    assert excess(counts_of(x.numpy(), len(p)), law) < 4.5
