"""In bfloat16 at published shapes on the GPU that is here, against float32: see `checks.py` for what is compared.

The bounds: an implementation rounds probabilities and gradients of logits to bfloat16 (a relative 2**-9 each), so that
whole arrays differ by about .003. A wrong scale, mask or tile differs by more than the bounds, which
`test_checks_here.py` shows.
"""

import concurrent.futures

import checks
import jax
import numpy as np
import pytest

from configs import uniform_gkl
from dfm_jax.benchmarking import cases
from dfm_jax.benchmarking import driver as benchmarks
from dfm_jax.config import freeze
from dfm_jax.planning import driver, targets
from dfm_jax.planning.report import verdict

pytestmark = pytest.mark.gpu

PUBLISHED = {"hidden_size": 768, "n_blocks": 12, "n_heads": 12, "length": 1024, "batch": 2, "vocabulary": 50257}
# Bounds of `checks.attention_errors` and `checks.head_errors`; those of `test_checks_here.py` as well.
ATTENTION = {"out": 0.01, "dq": 0.02, "dk": 0.02, "dv": 0.01}
HEAD = {"log_probs": 0.005, "loss": 1e-4, "dfeatures": 0.01, "dkernel": 0.01, "dbias": 0.01}


def assert_within(errors, bounds):
    assert errors.keys() == bounds.keys()
    assert all(errors[name] < bound for name, bound in bounds.items()), (errors, bounds)


def needs(implementation, capability):
    """Skips what this device cannot run: cuDNN's kernels need 8.0, ours are compiled for 9.0 alone."""
    if implementation == "cudnn" and capability < (8, 0):
        pytest.skip(f"cuDNN's attention needs compute capability 8.0 or more; this device has {capability}")
    if implementation == "pallas" and capability != (9, 0):
        pytest.skip(f"our Pallas kernels need compute capability 9.0 exactly; this device has {capability}")


@pytest.mark.parametrize("implementation", ["cudnn", "pallas", "xla"])
def test_attention(implementation, capability):
    needs(implementation, capability)
    try:
        errors = checks.attention_errors(implementation, (8, 1024, 12, 64))
    except RuntimeError as error:
        if implementation == "cudnn" and "not detected" in str(error):
            pytest.skip(f"cuDNN is not installed: {error}")
        raise
    assert_within(errors, ATTENTION)


@pytest.mark.parametrize("implementation", ["blocks", "pallas"])
def test_the_fused_head(implementation, capability):
    needs(implementation, capability)
    assert_within(checks.head_errors(implementation, (8, 1024), 768, 50257), HEAD)


def test_one_update_is_the_hosts_in_float32(tmp_path):
    """The published network on 2 x 1024 tokens. Both processes run at once; their noise and parameters are the same."""
    paths = {"cuda": tmp_path / "gpu.npz", "cpu": tmp_path / "host.npz"}
    dtypes = {"cuda": "bfloat16", "cpu": "float32"}
    started = {
        platform: checks.gradient_process(PUBLISHED, path, platform=platform, dtype=dtypes[platform])
        for platform, path in paths.items()
    }
    found, wanted = (checks.finished(started[platform], paths[platform]) for platform in ("cuda", "cpu"))
    errors = checks.compared(found, wanted)
    assert errors["cosine"] >= 0.999 and errors["loss"] < 1e-3 and errors["norm"] < 0.01, errors


def test_memory_is_as_planned(tmp_path, capability):
    """The training step at 64 x 1024, in a process of its own, within 10 % of what `--mode=compile` plans."""
    kind = jax.devices()[0].device_kind
    named = [name for name in targets.known() if name.upper() in kind.upper().split()]
    chip = named[0] if named else {(8, 0): "a100", (9, 0): "h100", (10, 0): "b200"}.get(capability)
    if chip is None or not any(driver.is_installed(name) for name in driver.PLUGINS):
        pytest.skip(f"no description of {kind}, of compute capability {capability}, to plan for")
    config = cases.fitted(freeze(uniform_gkl.get_config()), "gpu", 1)[0]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(driver.compile_one, driver.Job(config, f"{chip}:1", "train"))
        outcome = benchmarks.run_case(
            cases.Case("train"), config, answer=tmp_path / "lines.jsonl", log=tmp_path / "log.txt", trace=None,
            budget=benchmarks.Budget(240),
        )  # fmt: skip
        plan = answer.result()
    assert "error" not in plan, plan
    planned = verdict.judge(plan, config, targets.load(chip), 1).needed
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if planned > limit:
        pytest.skip(f"{kind} gives JAX {limit / 2**30:.1f} GiB; the step needs {planned / 2**30:.1f}")
    measured = [row["median"] for row in outcome.of("row") if row["what"] == "memory, as measured"]
    assert measured, (outcome, (tmp_path / "log.txt").read_text()[-3000:])
    error = checks.plan_error(planned, measured[0] * 2**30)
    assert abs(error) < 0.1, f"planned {planned / 2**30:.2f} GiB, measured {measured[0]:.2f}"


@pytest.mark.parametrize("name", ["mask-exact", "uniform-exact", "uniform-ancestral", "uniform-corrector"])
def test_samples_have_the_enumerated_law(name):
    assert checks.sampler_excess(name) < 4.5


def test_draws_of_the_fused_head_have_its_law():
    assert checks.draw_excess("blocks", 1 << 17, 64, 300) < 4.5


def test_a_run_of_30_steps_killed_in_the_middle_and_continued(tmp_path):
    """A GPU's sums are not the same bit for bit twice: the losses and the last arrays agree closely, not exactly."""
    with checks.KilledRun(tmp_path, "cuda", steps=30, every=5) as run:
        run.finish("whole", run.start("whole"))
        assert run.every < run.kill_in_the_middle("killed") < run.steps
        run.finish("killed", run.start("killed"))
    whole, killed = run.losses("whole"), run.losses("killed")
    np.testing.assert_allclose(killed, whole, rtol=0.02)
    assert checks.relative(run.arrays("killed"), run.arrays("whole")) < 0.05
