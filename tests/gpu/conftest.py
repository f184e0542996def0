"""The GPU tier: `JAX_PLATFORMS=cuda pytest -m gpu tests/gpu`. Elsewhere its tests are skipped before they compile.

The checks are in `checks.py` and take their size; `test_checks_here.py` runs the same checks small on any machine.
"""

import functools

import jax
import pytest


@functools.cache
def reason_to_skip() -> str | None:
    """Why there is no GPU to test on, or None."""
    try:
        device = jax.devices()[0]
    except (RuntimeError, AssertionError) as error:  # the second where a plugin is installed and finds no device
        return f"JAX finds no GPU: {' '.join(str(error).split())[:200]}".removesuffix(": ")
    if device.platform == "gpu":
        return None
    return f"needs a GPU (JAX_PLATFORMS=cuda pytest -m gpu); this is platform {device.platform}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and (reason := reason_to_skip()):
        pytest.skip(reason)


@pytest.fixture
def capability() -> tuple[int, int]:
    """Of the first device, such as (9, 0)."""
    major, _, minor = str(jax.devices()[0].compute_capability).partition(".")
    return int(major), int(minor or 0)
