"""`--mode=import` and `--mode=export` on the reference's own little checkpoints."""

import pathlib

import jax
import numpy as np
import pytest

import dfm_jax
from dfm_jax import cli
from dfm_jax.checkpoints import pytorch
from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.cli import command_line
from dfm_jax.models.transformer import TransformerConfig
from dfm_jax.runtime.errors import UsageError, WorldError

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def main(*words: str) -> int:
    return cli.run(command_line.parse(["main.py", *words]))


def make_config(folder: pathlib.Path, source: str) -> str:
    path = folder / f"{source}.py"
    path.write_text(
        "from configs import base\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        f"    config.flow.source_distribution = '{source}'\n"
        "    config.tokenizer.name = 'ids:37'\n"
        "    config.model.update(hidden_size=32, cond_dim=16, length=12, n_blocks=2, n_heads=2)\n"
        "    return config\n"
    )
    return f"--config={path}"


def import_one(folder: pathlib.Path, source: str, *words: str) -> pathlib.Path:
    file = FIXTURES / f"checkpoint_{source}.pth"
    workdir = folder / f"imported-{source}"
    assert main("--mode=import", f"--from={file}", f"--workdir={workdir}", make_config(folder, source), *words) == 0
    return workdir


@pytest.mark.default_cases(1)
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


@pytest.mark.default_cases(1)
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


@pytest.mark.slow
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
    "no file named": ([], UsageError, "from = (missing)"),
    "no such file": (["--from=nothing.pth"], WorldError, "nothing.pth"),
    "another width": (["--from={pth}", "--config.model.hidden_size=64"], WorldError, "hidden_size = 64"),
    "another source": (
        ["--from={pth}", "--config.flow.source_distribution=mask"],
        UsageError,
        "config.tokenizer.name = ids:37: expected ids:36 with the mask source, or flow.source_distribution=uniform "
        "with ids:37, as the file has 37 token states",
    ),
    "another tokenizer": (["--from={pth}", "--config.tokenizer.name=gpt2"], UsageError, "gpt2: expected ids:37 with"),
    "one token less": (
        ["--from={pth}", "--config.tokenizer.name=ids:36"],
        UsageError,
        "expected ids:37 with the uniform source, or flow.source_distribution=mask with ids:36, as the file has 37",
    ),
    "an option of ours": (
        ["--from={pth}", "--config.model.qk_norm=true"],
        UsageError,
        "qk_norm = True: expected False",
    ),
}


@pytest.mark.parametrize("words, error, part", WRONG.values(), ids=WRONG)
def test_a_wrong_import_is_one_line_and_leaves_nothing(words, error, part, tmp_path):
    words = [word.format(pth=FIXTURES / "checkpoint_uniform.pth") for word in words]
    with pytest.raises(error) as caught:
        main("--mode=import", "--workdir=run", make_config(tmp_path, "uniform"), *words)
    assert part in str(caught.value) and "\n" not in str(caught.value)
    assert not pathlib.Path("run").exists()


def test_a_mask_model_of_257_states_is_no_uniform_run_on_bytes(tmp_path):
    """The mask's row is one more than 256 ids; so many are the tokens of bytes."""
    config = TransformerConfig(257, hidden_size=32, cond_dim=16, length=12, n_blocks=2, n_heads=2)
    model = convert.abstract_model(config)
    model = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), model)
    pytorch.write_weights(tmp_path / "mask.safetensors", model, config=config, step=3)
    words = ["--mode=import", f"--from={tmp_path / 'mask.safetensors'}", "--config.tokenizer.name=ids:256"]
    with pytest.raises(UsageError, match=r"ids:256: expected bytes or ids:257 with the uniform source, or .*=mask"):
        main(*words, make_config(tmp_path, "uniform"), "--workdir=uniform")
    assert not pathlib.Path("uniform").exists()
    assert main(*words, make_config(tmp_path, "mask"), "--workdir=mask") == 0
    run = dfm_jax.load("mask")
    assert (run.tokenizer.name, run.problem.source.mask_id) == ("ids:256", 256)


def test_an_override_beside_no_config_must_agree_too(tmp_path):
    config = TransformerConfig(50257, hidden_size=8, cond_dim=8, length=4, n_blocks=1, n_heads=1)
    model = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), convert.abstract_model(config))
    pytorch.write_weights(tmp_path / "a.safetensors", model, config=config, step=3)
    words = ["--mode=import", f"--from={tmp_path / 'a.safetensors'}", "--workdir=run"]
    with pytest.raises(UsageError, match=r"source_distribution = mask: expected uniform, as the file's 50257"):
        main(*words, "--config.flow.source_distribution=mask")
    with pytest.raises(WorldError, match="n_heads = 2 in the config: expected 1"):
        main(*words, "--config.model.n_heads=2")


@pytest.mark.slow
def test_a_safetensors_file_says_what_its_numbers_mean(tmp_path):
    """Its shapes would fit any of these configs."""
    workdir = import_one(tmp_path, "mask", "--config.model.parametrization=leave_one_out", "--config.flow.exponent=2")
    assert main("--mode=export", f"--workdir={workdir}", "--output=out.safetensors") == 0
    words = ["--mode=import", "--from=out.safetensors"]
    with pytest.raises(UsageError, match=r"flow.exponent = 1.0: expected 2.0, as the file says"):
        main(*words, "--workdir=other", make_config(tmp_path, "mask"), "--config.model.parametrization=leave_one_out")
    assert main(*words, "--workdir=again") == 0  # and so no config is needed
    assert dfm_jax.load("again").config.to_dict()["flow"] == dfm_jax.load(workdir).config.to_dict()["flow"]
    assert dfm_jax.load("again").tokenizer.name == "ids:37"


def test_a_file_is_told_by_its_content(tmp_path):
    (tmp_path / "weights.bin").write_bytes((FIXTURES / "checkpoint_mask.pth").read_bytes())
    words = [f"--from={tmp_path / 'weights.bin'}", "--workdir=run", make_config(tmp_path, "mask")]
    assert main("--mode=import", *words) == 0


def test_a_folder_with_checkpoints_is_not_overwritten(tmp_path):
    workdir = import_one(tmp_path, "uniform")
    with pytest.raises(WorldError, match="already has checkpoints"):
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
    with pytest.raises(UsageError, match="format = gguf: expected one of safetensors, pytorch"):
        main("--mode=export", f"--workdir={workdir}", "--format=gguf")


def test_a_folder_is_no_output_file(tmp_path):
    workdir = import_one(tmp_path, "uniform")
    with pytest.raises(UsageError, match="expected the name of a file"):
        main("--mode=export", f"--workdir={workdir}", f"--output={tmp_path}")


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("change", ["flow.source_distribution=mask", "flow.exponent=2", "model.n_heads=4"])
def test_a_run_is_not_used_as_another_network_of_the_same_shapes(tmp_path, change):
    workdir = import_one(tmp_path, "uniform")
    with pytest.raises(UsageError, match=f"config.{change.split('=')[0]} = .*expected .* was trained with"):
        main("--mode=sample", f"--workdir={workdir}", f"--config.{change}")
    assert not (workdir / "samples").exists()
