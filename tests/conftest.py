"""Settings of every test: strict dtypes and ranks, compiled programs kept between runs, and the tiers.

Tests marked `slow` or `gpu` are left out unless `-m` asks for them (`addopts` in pyproject.toml).
"""

import collections
import functools
import os
import pathlib
import zlib

import programs

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests start processes that use the same device: no process may take a GPU's memory beforehand.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# A test is mostly compilation: the least of it. `XLA_FLAGS= pytest` compiles as a user's run does, and takes longer.
os.environ.setdefault("XLA_FLAGS", programs.least_compilation())

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.load_profile("repeatable")


# Files that take minutes, the longest first; then those with other slow tests. A process that is given a long file near
# the end keeps the others waiting.
LONG = (
    *("mesh/test_meshes.py", "test_configs.py", "planning/test_ahead_of_time.py", "faults/test_run_faults.py"),
    *("flow/test_drafts.py", "test_own_text.py", "training/test_runs_on_records.py", "run/test_import_published.py"),
    *("test_examples.py", "gpu/test_checks_here.py", "test_api.py", "oracles/test_correctors.py"),
)
ORDER = {ROOT / "tests" / name: place for place, name in enumerate(LONG)}


def pytest_configure(config: pytest.Config) -> None:
    # xdist would begin with the files that have the most tests.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    cases = collections.defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("default_cases")
        if mark and not item.get_closest_marker("slow"):
            cases[item.nodeid.split("[")[0], *mark.args].append(item)
    # Drawn by a checksum of their names: of a product of parameters, an even stride would always take the same values.
    for (_, default), of_one_test in cases.items():
        for item in sorted(of_one_test, key=lambda item: zlib.crc32(item.name.encode()))[default:]:
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: ORDER.get(item.path, len(LONG) + (item.path not in slow)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := reason_without_gpu()):
        pytest.skip(reason)


@functools.cache
def reason_without_gpu() -> str | None:
    """Why there is no GPU to test on, or None."""
    try:
        device = jax.devices()[0]
    except (RuntimeError, AssertionError) as error:  # the second where a plugin is installed and finds no device
        return f"JAX finds no GPU: {' '.join(str(error).split())[:200]}".removesuffix(": ")
    if device.platform == "gpu":
        return None
    return f"needs a GPU (JAX_PLATFORMS=cuda pytest -m gpu); this is platform {device.platform}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    # No -m on the command line: the expression is still that of addopts.
    if config.option.markexpr in config.getini("addopts"):
        terminalreporter.write_line(
            "Left out: tests marked slow or gpu, also where they are named. Slow ones run with `pytest -m slow`, "
            "those that need a GPU with `JAX_PLATFORMS=cuda pytest -m gpu`, all with `pytest -m ''`."
        )
