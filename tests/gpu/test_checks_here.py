"""The checks of the GPU tier at small sizes on whatever is here: what they compare, and that they see what is wrong."""

import subprocess
import sys

import checks
import gradient
import numpy as np
import pytest
from faults import runs
from test_on_a_gpu import ATTENTION, HEAD, assert_within

SMALL = {"hidden_size": 32, "n_blocks": 2, "n_heads": 2, "length": 32, "batch": 4, "vocabulary": 300}


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_attention(implementation):
    """On a processor `pallas` is its interpreted form."""
    assert_within(checks.attention_errors(implementation, (2, 70, 2, 32)), ATTENTION)


def test_the_check_of_attention_sees_a_wrong_scale():
    errors = checks.attention_errors("xla", (2, 70, 2, 32), scale=1.1)
    assert all(errors[name] > bound for name, bound in ATTENTION.items()), errors


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", ["blocks", "pallas"])
def test_the_fused_head(implementation):
    """On a processor a loop stands for the kernels of `pallas`."""
    assert_within(checks.head_errors(implementation, (2, 64), 64, 300), HEAD)


def test_the_check_of_the_head_sees_a_wrong_scale():
    errors = checks.head_errors("blocks", (2, 64), 64, 300, scale=1.1)
    assert all(errors[name] > bound for name, bound in HEAD.items()), errors


@pytest.mark.slow
def test_one_update_in_bfloat16_is_that_in_float32():
    found, wanted = (gradient.loss_and_gradient(SMALL, dtype) for dtype in ("bfloat16", "float32"))
    errors = checks.compared(found, wanted)
    assert 0.999 <= errors["cosine"] < 1 - 1e-9, errors  # bfloat16 was used
    assert errors["loss"] < 1e-3 and errors["norm"] < 0.01, errors
    turned = wanted[0], np.roll(wanted[1], 1)
    assert checks.compared(turned, wanted)["cosine"] < 0.9


@pytest.mark.slow
def test_an_update_in_a_process_of_its_own(tmp_path):
    path = tmp_path / "host.npz"
    loss, vector = checks.finished(checks.gradient_process(SMALL, path, platform="cpu", dtype="float32"), path)
    here = gradient.loss_and_gradient(SMALL, "float32")
    assert checks.compared((loss, vector), here)["cosine"] > 1 - 1e-6


def test_draws_of_the_fused_head_have_its_law():
    assert checks.draw_excess("blocks", 1 << 14, 32, 100) < 4.5


@pytest.mark.slow
def test_a_run_killed_in_the_middle_and_continued(tmp_path):
    """On a processor bit for bit."""
    with checks.KilledRun(tmp_path, "cpu", steps=12, every=4) as run:
        run.finish("whole", run.start("whole"))
        assert run.every < run.kill_in_the_middle("killed") < run.steps
        run.finish("killed", run.start("killed"))
    assert run.losses("whole") == run.losses("killed")
    assert (run.arrays("whole") == run.arrays("killed")).all()


def test_memory_beside_its_plan():
    assert checks.plan_error(100, 105.0) == pytest.approx(0.05) and checks.plan_error(100, 80.0) == pytest.approx(-0.2)


@pytest.mark.slow
def test_without_a_gpu_the_tier_is_skipped_with_its_reason():
    """Before anything is compiled; also where JAX is told to use a GPU that is not there."""
    tier = str(runs.ROOT / "tests" / "gpu" / "test_on_a_gpu.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "gpu", tier]
    for platform, reason in (("cpu", "this is platform cpu"), ("cuda", "JAX finds no GPU")):
        env = runs.environment() | {"JAX_PLATFORMS": platform, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and reason in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
        assert "13 skipped" in done.stdout and "passed" not in done.stdout
