"""`--mode=import` and `--mode=export` on the reference's own little checkpoints."""

import pathlib

import jax
import numpy as np
import pytest

import dfm_jax
from dfm_jax import command_line, commands
from dfm_jax.errors import UsageError, WorldError
from dfm_jax.models import pytorch

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def main(*words: str) -> int:
    return commands.run(command_line.parse(["main.py", *words]))


def make_config(folder: pathlib.Path, source: str) -> str:
    path = folder / f"{source}.py"
    path.write_text(
        "from configs import base\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        f"    config.flow.source_distribution = '{source}'\n"
        "    config.model.update(hidden_size=32, cond_dim=16, length=12, n_blocks=2, n_heads=2)\n"
        "    return config\n"
    )
    return f"--config={path}"


def import_one(folder: pathlib.Path, source: str, *words: str) -> pathlib.Path:
    file = FIXTURES / f"checkpoint_{source}.pth"
    workdir = folder / f"imported-{source}"
    assert main("--mode=import", f"--from={file}", f"--workdir={workdir}", make_config(folder, source), *words) == 0
    return workdir


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_an_imported_run_gives_the_reference_logits(source, tmp_path):
    run = dfm_jax.load(import_one(tmp_path, source))
    expected = np.load(FIXTURES / f"adamw_{source}.npz")
    inputs = np.load(FIXTURES / f"transformer_{source}.npz")
    logits = run.logits(inputs["x_t"], inputs["time"])
    np.testing.assert_allclose(logits, expected["logits_after"], atol=1e-5)
    assert run.step == 7
    assert run.tokenizer.name == "ids:37" and run.tokenizer.decode([1, 2]) == "1 2"
    assert run.config.model.suppress_mask_logit is False


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_out_and_in_again_is_bitwise(source, tmp_path):
    workdir = import_one(tmp_path, source)
    main("--mode=export", f"--workdir={workdir}", "--format=pytorch", "--output=out.pth")
    first = pytorch.read_checkpoint(FIXTURES / f"checkpoint_{source}.pth")
    again = pytorch.read_checkpoint("out.pth")
    assert (first.step, first.count) == (again.step, again.count)
    for name in ("model", "mu", "nu"):
        for a, b in zip(jax.tree.leaves(getattr(first, name)), jax.tree.leaves(getattr(again, name)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_safetensors_out_and_in_gives_the_same_logits(tmp_path):
    workdir = import_one(tmp_path, "mask")
    assert main("--mode=export", f"--workdir={workdir}") == 0
    file = workdir / "export" / "step_7.safetensors"
    second = tmp_path / "second"
    assert main("--mode=import", f"--from={file}", f"--workdir={second}", make_config(tmp_path, "mask")) == 0
    inputs = np.load(FIXTURES / "transformer_mask.npz")
    logits = [dfm_jax.load(run).logits(inputs["x_t"], inputs["time"]) for run in (workdir, second)]
    np.testing.assert_array_equal(*logits)


WRONG = {
    "no file named": ([], UsageError, "from=(missing)"),
    "no such file": (["--from=nothing.pth"], WorldError, "nothing.pth"),
    "another width": (["--from={pth}", "--config.model.hidden_size=64"], WorldError, "hidden_size=64"),
}


@pytest.mark.parametrize("words, error, part", WRONG.values(), ids=WRONG)
def test_a_wrong_import_is_one_line_and_leaves_nothing(words, error, part, tmp_path):
    words = [word.format(pth=FIXTURES / "checkpoint_uniform.pth") for word in words]
    with pytest.raises(error) as caught:
        main("--mode=import", "--workdir=run", make_config(tmp_path, "uniform"), *words)
    assert part in str(caught.value) and "\n" not in str(caught.value)
    assert not pathlib.Path("run").exists()


def test_a_folder_with_checkpoints_is_not_overwritten(tmp_path):
    workdir = import_one(tmp_path, "uniform")
    with pytest.raises(WorldError, match="without checkpoints"):
        main(
            "--mode=import",
            f"--from={FIXTURES / 'checkpoint_uniform.pth'}",
            f"--workdir={workdir}",
            make_config(tmp_path, "uniform"),
        )


def test_an_unknown_vocabulary_wants_a_config():
    with pytest.raises(UsageError, match="50257"):
        main("--mode=import", f"--from={FIXTURES / 'checkpoint_uniform.pth'}", "--workdir=run")


def test_an_unknown_format_is_refused(tmp_path):
    workdir = import_one(tmp_path, "uniform")
    with pytest.raises(UsageError, match="format=gguf: accepted is one of safetensors, pytorch"):
        main("--mode=export", f"--workdir={workdir}", "--format=gguf")


def test_a_folder_is_no_output_file(tmp_path):
    workdir = import_one(tmp_path, "uniform")
    with pytest.raises(UsageError, match="accepted is the name of a file"):
        main("--mode=export", f"--workdir={workdir}", f"--output={tmp_path}")


@pytest.mark.parametrize("change", ["flow.source_distribution=mask", "flow.exponent=2", "model.n_heads=4"])
def test_a_run_is_not_used_as_another_network_of_the_same_shapes(tmp_path, change):
    workdir = import_one(tmp_path, "uniform")
    with pytest.raises(UsageError, match=f"config.{change.split('=')[0]} = .*expected .* was trained with"):
        main("--mode=sample", f"--workdir={workdir}", f"--config.{change}")
    assert not (workdir / "samples").exists()
