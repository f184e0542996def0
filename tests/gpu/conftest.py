"""The GPU tier: `JAX_PLATFORMS=cuda pytest -m gpu tests/gpu`. Elsewhere its tests are skipped before they compile.

The checks are in `checks.py` and take their size; `test_checks_here.py` runs the same checks small on any machine.
"""

import jax
import pytest


@pytest.fixture
def capability() -> tuple[int, int]:
    """Of the first device, such as (9, 0)."""
    major, _, minor = str(jax.devices()[0].compute_capability).partition(".")
    return int(major), int(minor or 0)
