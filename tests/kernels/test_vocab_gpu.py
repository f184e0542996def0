"""The vocabulary head's Mosaic GPU kernels on a machine without a GPU: compiled for Hopper, and simulated."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

import programs

pytestmark = pytest.mark.slow


def run(script: str, **variables: str) -> str:
    path = pathlib.Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, check=False,
        env=programs.environment(JAX_PLATFORMS="cpu", XLA_FLAGS="", **variables),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_compiles_for_hopper_without_spills():
    """Forward and backward for sm_90a, at the published width and vocabulary, in all that the objectives ask for."""
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        pytest.skip("needs jax's CUDA plugin (`pip install jax-cuda12-plugin jax-cuda12-pjrt`)")
    output = run("vocab_for_hopper.py", MOSAIC_GPU_DUMP_PTXAS="1")
    # Two kernels in each of five forms, and a second pass for the reduction that needs normalised probabilities.
    assert output.count(" 0 bytes spill stores, 0 bytes spill loads") == 2 * 5 + 1, output[-3000:]
    assert "spilled" not in output


def test_the_gpus_program_simulated():
    """Warpgroups, asynchronous copies and barriers in jax's simulation of a GPU, which also looks for races."""
    if importlib.util.find_spec("jax._src.pallas.mosaic_gpu.interpret") is None:
        pytest.skip("this jax has no simulation of Mosaic GPU kernels (0.10.2 has)")
    assert run("vocab_simulated.py").splitlines()[-1] == "ok"
