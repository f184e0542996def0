"""A run as a folder for others: written whole, loaded back, made a run again; and in the layout of MDLM."""

import json
import pathlib
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest

import dfm_jax
from dfm_jax import cli
from dfm_jax.checkpoints.safetensors_file import read_safetensors
from dfm_jax.cli import command_line
from dfm_jax.runtime.errors import WorldError

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "public_weights"
ALL = ("mdlm", "sedd", "udlm", "duo")
FEW = {"flow.sampling_steps": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: dfm_jax.import_weights(FIXTURES / name, folder / name, overrides=FEW) for name in ALL}


def same(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", [n if n in ("mdlm", "udlm") else pytest.param(n, marks=pytest.mark.slow) for n in ALL])
def test_a_folder_for_the_hub_loads_and_is_imported_bit_for_bit(name, runs, tmp_path):
    run = runs[name]
    folder = dfm_jax.export(run, tmp_path / "out", format="hub", license="apache-2.0")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = dfm_jax.load(folder)
    same(loaded.model, run.model)
    assert loaded.config == run.config and loaded.step == run.step
    np.testing.assert_array_equal(loaded.sample_tokens(2, seed=3), run.sample_tokens(2, seed=3))
    again = dfm_jax.import_weights(folder, tmp_path / "again")
    same(again.model, run.model)
    assert again.config == run.config
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_the_card_says_what_the_run_is(runs, tmp_path):
    card = (dfm_jax.export(runs["sedd"], tmp_path / "out", format="hub", license="mit") / "README.md").read_text()
    assert card.startswith('---\nlicense: "mit"\nlibrary_name: dfm_jax\n')
    for part in ("150,754", "ids:97", "sedd, layout sedd", "sigma = -log kappa, at most 6.9", "Not evaluated at step 0",
                 "Drawn with 4 steps of `exact`", 'dfm_jax.load("out")'):  # fmt: skip
        assert part in card, part
    assert str(FIXTURES) not in card and str(tmp_path) not in card


@pytest.mark.slow
def test_the_card_has_the_figures_of_its_step(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs["duo"].folder, folder)
    ids = (np.arange(48 * 64) * 7) % 97
    (tmp_path / "valid.txt").write_text(" ".join(map(str, ids)))
    few = {"eval.corpora": (f"{tmp_path}/valid.txt",), "data.cache_dir": str(tmp_path / "data"), "eval.time_points": 4,
           "eval.perplexity": False, "eval.batch_size": 64}  # fmt: skip
    report = dfm_jax.evaluate(folder, overrides=few)
    card = (dfm_jax.export(folder, tmp_path / "out", format="hub") / "README.md").read_text()
    bound = next(iter(report.likelihood.values()))["bounds"]["time_reversal"]
    assert f"{bound['nats_per_token']:.4f}" in card and "±" in card and "Not evaluated" not in card


@pytest.mark.slow
def test_the_verbs_take_an_exported_folder_and_its_name_on_the_hub(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = dfm_jax.export(runs["sedd"], "out", format="hub")
    few = {"sampling.num": 2, "sampling.steps": 2, "sampling.seed": 3}
    texts = dfm_jax.sample(runs["sedd"], overrides=few, output=tmp_path / "ours")
    assert dfm_jax.sample(folder, overrides=few, output=tmp_path / "theirs") == texts
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / "out"))
    assert dfm_jax.sample("hf:me/tiny", overrides=few) == texts and (tmp_path / "runs" / "tiny" / "samples").is_dir()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert cli.run(command_line.parse(["main.py", "--mode=export", "--workdir=out", "--output=a.safetensors"])) == 0
    same(read_safetensors(tmp_path / "a.safetensors"), read_safetensors(folder / "model.safetensors"))
    with pytest.raises(WorldError, match="--mode=import --from=out makes one of what was exported there"):
        dfm_jax.train(folder)
    with pytest.raises(WorldError, match="step = 7: expected 0"):
        dfm_jax.sample(folder, step=7)
    with pytest.raises(ValueError, match=r"config\.flow\.exponent = 2\.0: expected 1\.0"):
        dfm_jax.sample(folder, overrides={"flow.exponent": 2.0})


def test_what_is_pushed_is_the_folder(runs, tmp_path, monkeypatch):
    taken = {}

    class Api:
        def create_repo(self, name, *, exist_ok):
            return f"https://hub/{name}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")
            taken[repo_id] = commit_message

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    dfm_jax.export(runs["udlm"], tmp_path / "out", format="hub", push="someone/tiny")
    assert taken == {"someone/tiny": "Step 0"}
    assert 'dfm_jax.load("hf:someone/tiny")' in (tmp_path / "hub" / "README.md").read_text()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / "hub"))
    same(dfm_jax.load("hf:someone/tiny").model, runs["udlm"].model)


def test_a_hub_that_refuses_leaves_the_folder(runs, tmp_path, monkeypatch):
    class Api:
        def create_repo(self, name, *, exist_ok):
            raise ConnectionError("no route\nto it")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(WorldError, match=r"push = a/b: the hub did not take it \(ConnectionError: no route to it\)"):
        dfm_jax.export(runs["udlm"], tmp_path / "out", format="hub", push="a/b")
    assert dfm_jax.load(tmp_path / "out").step == 0


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", ["mdlm", "sedd"])
def test_masked_runs_come_back_from_the_layout_of_mdlm(name, runs, tmp_path):
    folder = dfm_jax.export(runs[name], tmp_path / "out", format="mdlm")
    again = dfm_jax.import_weights(folder, tmp_path / "again")
    same(again.model, runs[name].model)
    assert again.config.model.time_conditioning == (name == "sedd")
    if name == "mdlm":
        ours, theirs = (read_safetensors(path / "model.safetensors") for path in (folder, FIXTURES / "mdlm"))
        assert set(ours) == set(theirs)
        same(ours, theirs)
        configs = [json.loads((path / "config.json").read_text()) for path in (folder, FIXTURES / "mdlm")]
        assert {key: configs[0].get(key) for key in configs[1] if key != "auto_map"} == {
            key: value for key, value in configs[1].items() if key != "auto_map"
        }
        assert "--modeling_mdlm.MDLM" in configs[0]["auto_map"]["AutoModelForMaskedLM"]


def test_a_mask_inside_goes_back_to_its_place(tmp_path):
    run = dfm_jax.import_weights(FIXTURES / "mdlm", tmp_path / "run", mask_id=5, overrides=FEW)
    folder = dfm_jax.export(run, tmp_path / "out", format="mdlm")
    same(read_safetensors(folder / "model.safetensors"), read_safetensors(FIXTURES / "mdlm" / "model.safetensors"))


WRONG = {
    "another source": ("duo", {"format": "mdlm"}, "source_distribution = uniform: expected mask with --format=mdlm"),
    "a push of a file": ("duo", {"push": "a/b"}, "push = a/b: expected with --format=hub"),
    "a push to nowhere": ("duo", {"format": "hub", "push": "ab"}, "push = ab: expected OWNER/NAME"),
    "an unknown format": ("duo", {"format": "gguf"}, "gguf: expected one of safetensors, pytorch, hub, mdlm"),
}  # fmt: skip


@pytest.mark.parametrize("name, options, part", WRONG.values(), ids=WRONG)
def test_an_export_that_cannot_be_is_one_line_and_leaves_nothing(name, options, part, runs, tmp_path):
    with pytest.raises(ValueError) as caught:
        dfm_jax.export(runs[name], tmp_path / "out", **options)
    assert part in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_not_written_over(runs, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        dfm_jax.export(runs["duo"], tmp_path, format="hub")
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_published_folder_that_was_changed_is_refused(runs, tmp_path):
    folder = dfm_jax.export(runs["duo"], tmp_path / "out", format="hub")
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content["run"]["flow"]["source_distribution"] = "mask"
    file.write_text(json.dumps(content))
    with pytest.raises(WorldError, match=r"folder = .*out: config\."):
        dfm_jax.load(folder)
    file.write_text(json.dumps({**content, "run": None}))
    with pytest.raises(WorldError, match=r"config.json run = \(missing\)"):
        dfm_jax.load(folder)
    with pytest.raises(WorldError, match="step = 7: expected 0"):
        dfm_jax.load(dfm_jax.export(runs["duo"], tmp_path / "second", format="hub"), step=7)


def test_a_field_that_makes_another_network_is_refused_at_import(runs, tmp_path):
    folder = dfm_jax.export(runs["duo"], tmp_path / "out", format="hub")
    with pytest.raises(ValueError, match=r"config.flow.exponent = 2.0: expected 1.0, as the folder says"):
        dfm_jax.import_weights(folder, tmp_path / "run", overrides={"flow.exponent": 2.0})
    run = dfm_jax.import_weights(folder, tmp_path / "run", overrides={"optim.lr": 1e-4})
    assert run.config.optim.lr == 1e-4 and run.config.flow.loss_function == "time_reversal"


def test_the_command_line_writes_the_folder(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs["mdlm"].folder, "runs/tiny")
    assert cli.run(command_line.parse(["main.py", "--mode=export", "--format=hub", "--license=mit"])) == 0
    assert dfm_jax.load("runs/tiny/export/step_0_hub").tokenizer.name == "ids:97"
