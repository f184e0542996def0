"""How often the update passes over the parameters, in the step compiled for an H100 on this machine."""

import json
import pathlib
import subprocess
import sys

import pytest

import programs
from dfm_jax.planning import driver
from dfm_jax.runtime.errors import WorldError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_the_update_is_one_kernel_a_parameter(grad_accum):
    """Norm, division, clipping, AdamW, decay, the average and the choice after a bad step: each array is read once.

    Read are parameter, average, two moments and gradient, the gradient once more for its norm; written are the first
    four: ten times the parameters. Parts of a batch add a gradient of zeros to begin with.
    """
    try:
        driver.check_installed()
    except WorldError as error:
        pytest.skip(str(error))
    script = pathlib.Path(__file__).with_name("update_for_hopper.py")
    done = subprocess.run(
        [sys.executable, str(script), str(grad_accum)], capture_output=True, text=True, check=False,
        env=programs.environment(JAX_PLATFORMS="cpu", XLA_FLAGS=""),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert len(answer["read"]) >= 9, answer["read"]
    for name, (parameter, *kept) in answer["read"].items():
        assert len(kept[0]) == 1 and kept[0] == kept[1] == kept[2], (name, kept)
        # The forward pass may have a kernel that puts parameters together.
        assert kept[0][0] in parameter, (name, parameter)
    times = 10 if grad_accum == 1 else 11
    # One more kernel a parameter would read and write: 2 more.
    assert times <= answer["moved"] / answer["leaves"] < times + 1
