"""Verdicts, rooflines, pages and sweeps from answers made by hand."""

import dataclasses
import json

import pytest

from configs import base
from dfm_jax import planning
from dfm_jax.config import freeze
from dfm_jax.models import flops
from dfm_jax.planning import driver, sweep, targets
from dfm_jax.planning.report import page as report
from dfm_jax.planning.report import roofline, verdict
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.mesh import MeshShape

GIB = 2**30
TARGET = targets.parse("h100:8")


def answer(peak=10 * GIB, arguments=2 * GIB, workspace=0, program="train", **more):
    arithmetic = {
        "matrix_flops": 5e13,
        "attention_flops": 1e13,
        "float32_flops": 0.0,
        "bytes_moved": 3e11,
        "custom_calls": {"__cudnn$fmhaSoftmax": 12},
        "attention_workspace": workspace,
        "unknown_loops": False,
        "pallas_calls": {},
        "kernel_seconds": 0.1,
        "slowest": [],
        "shares": [
            {"category": "head", "kernels": 48.0, "flops": 5e13, "bytes": 2e11, "seconds": 0.07},
            {"category": "copies", "kernels": 9.0, "flops": 1e13, "bytes": 1e11, "seconds": None},
        ],
        "host_waits": 1024,
        "repeated_flops": 0.0,
    }
    collective = {
        "kind": "all-reduce",
        "dtype": "f32",
        "devices": 8,
        "nodes": 1,
        "count": 3,
        "bytes": 7e8,
        "sent": 1.2e9,
        "seconds": 0.003,
        "operations": ["jit(step)/transpose"],
    }
    return {
        "program": program,
        "rows": 512,
        "tokens": 512 * 1024,
        "turns": 1,
        "mesh": {"data": 8, "fsdp": 1, "tensor": 1},
        "trace_seconds": 1.0,
        "compile_seconds": 20.0,
        "jax": "0.10.2",
        "memory": {
            "arguments": arguments,
            "outputs": arguments,
            "outputs_in_place_of_arguments": arguments,
            "temporaries": peak - arguments,
            "peak": peak,
        },
        "buffers": [
            {"bytes": GIB, "shape": "f32[1]", "kind": "temporary", "operation": "a/b", "source": "f:1"},
        ],
        "vocabulary": {"logits_per_device": 100, "largest": 7, "shape": "f32[7]", "operation": ""},
        "arithmetic": arithmetic | more,
        "hidden": 0.002,
        "collectives": [collective],
    }


def judged(config=None, **of):
    return verdict.judge(answer(**of), config or base.get_config(), TARGET.chip, 8)


def test_verdicts_by_memory(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    card = TARGET.chip.memory
    assert judged(peak=20 * GIB).word == "fits" and judged(peak=20 * GIB).advice == ()
    limit = int(0.75 * card * 0.97)
    assert judged(peak=limit).word == "fits"
    tight = judged(peak=limit + 1)
    assert tight.word == "tight" and tight.advice[0].startswith("XLA_PYTHON_CLIENT_MEM_FRACTION=0.95")
    assert judged(peak=card).word == "does not fit"
    # cuDNN's workspace counts.
    assert judged(peak=limit, workspace=1).word == "tight"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert judged(peak=limit + 1).word == "fits"


def test_advice_names_fields_that_exist(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    config = base.get_config()
    config.model.remat = "none"
    first, second = judged(config, peak=120 * GIB).advice
    assert first.startswith("--config.model.remat=dots")
    assert second.startswith("--config.training.grad_accum=2")
    config.model.remat = "blocks"
    (parts,) = judged(config, peak=250 * GIB).advice
    assert parts.startswith("--config.training.grad_accum=4")
    # Parameters alone fill the card: only splitting them helps.
    assert judged(config, peak=90 * GIB, arguments=85 * GIB).advice == (
        "--config.mesh.fsdp=8: splits parameters and moments further",
    )
    assert judged(config, peak=200 * GIB, program="sample").advice == ("--config.eval.sample_batch_size=4",)


def test_roofline_and_projections():
    config = base.get_config()
    times = roofline.roofline(answer(), TARGET)
    assert times.arithmetic == pytest.approx(6e13 / 989.4e12)
    assert times.memory == pytest.approx(3e11 / 3.35232e12)
    assert (times.links, times.exposed, times.bound) == pytest.approx((0.003, 0.001, 0.101))
    half, *_ = roofline.projections(config, 50257, TARGET)
    assert half.utilisation == 0.25
    # The published speed, 380 k steps a day, is 25 % of the peak.
    assert 86400 / half.step_seconds == pytest.approx(380e3, rel=0.02)
    assert half.days == pytest.approx(1e6 * half.step_seconds / 86400)
    assert roofline.utilisation(config, 50257, half.step_seconds, TARGET) == pytest.approx(0.25)
    assert half.tokens_per_second * half.step_seconds == pytest.approx(512 * 1024)


def test_a_chip_without_figures_has_no_times():
    chip = dataclasses.replace(TARGET.chip, peak=None, nvlink=None)
    target = dataclasses.replace(TARGET, chip=chip)
    given = answer(kernel_seconds=None)
    given["collectives"][0]["seconds"] = given["hidden"] = None
    result = report.summary(base.get_config(), target, {"train": given}, 169_625_681, 50257)
    assert result["training"]["mfu_at_bound"] is None and result["training"]["at_utilisation"] == []
    assert "no figures" in report.terminal(result)


def test_the_page_says_what_it_should():
    result = report.summary(base.get_config(), TARGET, {"train": answer()}, 169_625_681, 50257)
    json.dumps(result, allow_nan=False)
    page, screen = report.markdown(result, "uniform_gkl"), report.terminal(result)
    for text in ("169,625,681", "fits", "__cudnn$fmhaSoftmax", "a bound, not a prediction", "at 40% MFU"):
        assert text in page and text in screen
    for text in ("all-reduce f32", "| 1.00 GiB | f32[1] | temporary | a/b | f:1 |", "7.0% of the", "Not in these"):
        assert text in page
    assert result["training"]["model_flops_per_token"] == pytest.approx(854e6, rel=0.001)
    assert result["training"]["model_flops_per_step"] == flops.training_step(base.get_config(), 50257)
    assert "| head | 70.00 ms | 48 | 50.00 TFLOP | 200.00 GB | 3,051.8 kB |" in page
    assert "| copies | unknown | 9 | 10.00 TFLOP | 100.00 GB | 1,525.9 kB |" in page
    assert "| all | 100.00 ms | 57 | 60.00 TFLOP | 300.00 GB | 4,577.6 kB |" in page
    assert "at least 1,024 times the device waits" in page
    assert "again" not in screen
    result = report.summary(base.get_config(), TARGET, {"train": answer(repeated_flops=1.2e12)}, 169_625_681, 50257)
    assert "XLA computes 2.0% of it again, to keep to its limit of memory" in report.terminal(result)


def test_the_page_says_what_a_step_of_the_sampler_costs():
    """300 GB and 100 ms on each of 8 devices, for 64 Ki positions and 512 steps; 2 waits a step."""
    programs = {name: answer(program=name) | {"turns": 512} for name in ("evaluate", "sample")}
    programs["train"] = answer()
    result = report.summary(base.get_config(), TARGET, programs, 169_625_681, 50257)
    page, screen = report.markdown(result, "uniform_gkl"), report.terminal(result)
    each = "at least 0.20 ms, 9 kB a position, at least 2 waits for the host"
    for line in (f"evaluate: each of 512 times: {each}", f"sample: each of 512 steps: {each}"):
        assert line in page and line in screen
    assert "train: each" not in page and "| head | 70.00 ms | 48 | 50.00 TFLOP | 200.00 GB | 6.0 kB |" in page
    programs["sample"] = answer(program="sample", kernel_seconds=None)
    result = report.summary(base.get_config(), TARGET, programs, 169_625_681, 50257)
    assert "sample: one evaluation of each loop: 4,578 kB a position" in report.terminal(result)


def test_sweep_points_and_their_order():
    config = freeze(base.get_config())
    points = sweep.choices(config, TARGET, "all")
    assert len({(p.mesh, p.remat) for p in points}) * len(sweep.ROWS) == len(points)
    assert MeshShape(1, 4, 2) in {p.mesh for p in points}
    for point in points:
        chosen = point.apply(config)
        driver.check_fits_mesh(chosen, TARGET)
        shape = point.mesh
        assert chosen.training.batch_size == point.rows * shape.data * shape.fsdp * chosen.training.grad_accum
        assert chosen.training.batch_size >= config.training.batch_size
    assert [p.rows for p in sweep.choices(config, TARGET, "remat")] == [64, 64, 64]
    small, large, broken = (sweep.Choice(MeshShape(8, 1, 1), rows, "dots") for rows in (16, 64, 128))
    found = [(large, answer(peak=100 * GIB)), (broken, {"error": "ValueError", "text": "no"}), (small, answer())]
    ranked = sweep.rank(config, TARGET, found, 50257)
    assert [row["verdict"] for row in ranked] == ["fits", "does not fit", "ValueError: no"]
    cells = sweep.render(ranked)
    assert all(len(row) == len(cells[0]) for row in cells)
    with pytest.raises(UsageError, match="sweep = colour: expected all"):
        sweep.choices(config, TARGET, "colour")


@pytest.mark.parametrize(
    ("field", "value", "target", "said"),
    [
        ("mesh.fsdp", 3, "h100:8", "config.mesh = -1x3x1: expected axes whose product divides the 8 devices"),
        ("mesh.data", 4, "h100:8", "config.mesh = 4x1x1: expected axes whose product is 8"),
        ("training.batch_size", 12, "h100:8", "config.training.batch_size = 12: expected multiples of 8"),
        ("mesh.tensor", 8, "h100:8", "config.mesh.tensor = 8: expected divisors of model.n_heads=12"),
    ],
)
def test_a_mesh_that_does_not_match_is_one_line(tmp_path, field, value, target, said):
    config = base.get_config()
    group, name = field.split(".")
    config[group][name] = value
    with pytest.raises(UsageError) as caught:
        planning.run(config, target, tmp_path)
    assert str(caught.value).startswith(said)


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(driver, "PLUGINS", ("no.such.plugin", "nor_this"))
    with pytest.raises(WorldError, match=r"pip install jax-cuda12-plugin==.*no GPU is needed"):
        driver.check_installed()


def test_failures_of_a_child_are_one_line():
    job = driver.Job(base.get_config(), "h100:8", "train")
    driver.raise_for({"program": "train"}, job)
    with pytest.raises(UsageError, match=r"target=h100:8: the train program could not be compiled \(ValueError: head"):
        driver.raise_for({"error": "ValueError", "text": "head_dim 7"}, job)
    with pytest.raises(UsageError, match="XLA cannot read this one"):
        driver.raise_for({"error": "JaxRuntimeError", "text": "Failed to parse GpuTargetConfigProto from"}, job)
    with pytest.raises(WorldError, match="nvidia-cudnn"):
        driver.raise_for({"error": "exit status -6", "text": "libcudnn.so.9 not found"}, job)
