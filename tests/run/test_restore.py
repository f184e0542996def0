"""`checkpoint.restore_from` takes what fits by name and shape, of a run, a folder, a file or the hub, and says what."""

import pathlib

import jax
import numpy as np
import pytest

from dfm_jax import cli
from dfm_jax.checkpoints import tree_names
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.cli import command_line
from dfm_jax.config import Config
from dfm_jax.experiment import conditions
from dfm_jax.run import begin, restore
from dfm_jax.run.load import load
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.mesh import MeshShape, make_mesh
from dfm_jax.training.loop import make_trainer

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
MODEL = {"hidden_size": 32, "cond_dim": 16, "length": 12, "n_blocks": 2, "n_heads": 2}


def settings(*changes: str) -> Config:
    words = ["--config=configs/uniform_gkl.py", "--config.tokenizer.name=ids:37", "--workdir=none"]
    words += [f"--config.model.{name}={value}" for name, value in MODEL.items()]
    made = command_line.parse(["main.py", *words, *(f"--config.{change}" for change in changes)]).config
    conditions.check(made)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("origin") / "run"
    words = ["--mode=import", f"--from={FIXTURES / 'checkpoint_uniform.pth'}", f"--workdir={folder}"]
    words += ["--config=configs/uniform_gkl.py", "--config.tokenizer.name=ids:37"]
    words += [f"--config.model.{name}={value}" for name, value in MODEL.items()]
    assert cli.run(command_line.parse(["main.py", *words])) == 0
    return folder


@pytest.fixture(scope="module")
def weights(run, tmp_path_factory) -> pathlib.Path:
    """The run's weights as a folder."""
    folder = tmp_path_factory.mktemp("weights")
    command = ["main.py", "--mode=export", f"--workdir={run}", f"--output={folder / 'model.safetensors'}"]
    assert cli.run(command_line.parse(command)) == 0
    return folder


def start(origin: object, tmp_path: pathlib.Path, *changes: str):
    """(arrays of the first state, those of a state from scratch) by name."""
    config = settings(f"checkpoint.restore_from={origin}", *changes)
    trainer = make_trainer(config, 37, make_mesh(MeshShape(), jax.devices()[:1]))
    state = begin.first_state(trainer, Checkpoints(tmp_path / "new" / "checkpoints", keep_last=2))
    return tree_names.flatten(state.model), tree_names.flatten(trainer.create().model)


@pytest.fixture(scope="module")
def source(run) -> dict[str, jax.Array]:
    return tree_names.flatten(load(run).model)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_blocks_are_counted_one_by_one(blocks, run, source, tmp_path, capsys):
    """Another number of them, and what the source does not have at all."""
    found, blank = start(run, tmp_path, f"model.n_blocks={blocks}", "model.qk_norm=true")
    both = min(blocks, 2)
    for name, array in found.items():
        if "query_norm" in name or "key_norm" in name:
            np.testing.assert_array_equal(array, blank[name])
        elif name.startswith("blocks."):
            np.testing.assert_array_equal(array[:both], source[name][:both])
            np.testing.assert_array_equal(array[both:], blank[name][both:])
        else:
            np.testing.assert_array_equal(array, source[name])
    said = capsys.readouterr()
    line = said.out + said.err
    assert f"weights of {run}, step" in line and "blocks.query_norm.scale (not there)" in line
    assert ("blocks 2 to 2" in line) == (blocks == 3) and "% of the parameters" in line


def test_another_shape_is_initialised_and_said(run, source, tmp_path, capsys):
    found, blank = start(run, tmp_path, "model.mlp_ratio=2", "model.tie_embeddings=true")
    np.testing.assert_array_equal(found["blocks.mlp_up.kernel.value"], blank["blocks.mlp_up.kernel.value"])
    np.testing.assert_array_equal(found["blocks.qkv.kernel.value"], source["blocks.qkv.kernel.value"])
    said = capsys.readouterr()
    line = said.out + said.err
    assert "blocks.mlp_up.kernel ([2, 32, 128] and not [2, 32, 64])" in line
    assert "left out, as this model has none: head.kernel" in line


def test_where_nothing_fits_it_is_refused(run, tmp_path):
    with pytest.raises(WorldError, match=r"some fit this model; blocks\..*\(\[2, 32\] and not \[2, 64\]\)") as error:
        start(run, tmp_path, "model.hidden_size=64")
    assert "\n" not in str(error.value)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("form", ["folder", "file", "hub"])
def test_weights_without_a_run(form, weights, source, tmp_path, monkeypatch):
    origin: object = weights
    if form == "file":
        origin = weights / "model.safetensors"
    elif form == "hub":
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: {"me/mine": str(weights)}[name])
        origin = "hf:me/mine"
    found, blank = start(origin, tmp_path, "model.n_blocks=3")
    for name, array in found.items():
        both = 2 if name.startswith("blocks.") else len(array)
        np.testing.assert_array_equal(array[:both], source[name][:both])
        np.testing.assert_array_equal(array[both:], blank[name][both:])


def test_what_a_file_tells_of_its_meaning_counts(weights, tmp_path):
    with pytest.raises(UsageError, match=r"restore_changed=flow\.exponent to change that"):
        start(weights, tmp_path, "flow.exponent=2.0")
    start(weights, tmp_path, "flow.exponent=2.0", "checkpoint.restore_changed=flow.exponent")
    with pytest.raises(UsageError, match=r"tokenizer\.name cannot change"):
        restore.find(settings(f"checkpoint.restore_from={weights}", "tokenizer.name=ids:36"))


def test_what_is_not_there_is_one_line(tmp_path, monkeypatch):
    import huggingface_hub

    def offline(name, **_):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"\0" * 40)
    for origin, words in {
        str(tmp_path): "expected the folder of a run with a checkpoint, a folder with model.safetensors, or hf:NAME",
        "hf:me/mine": r"the hub cannot be asked \(ConnectionError\)",
        "hf:mine": "expected OWNER/NAME of the hub",
        str(tmp_path / "broken"): r"model\.safetensors",
    }.items():
        with pytest.raises((UsageError, WorldError), match=words) as caught:
            restore.find(settings(f"checkpoint.restore_from={origin}"))
        assert "\n" not in str(caught.value) and "checkpoint.restore_from = " in str(caught.value)
