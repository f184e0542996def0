"""What `base` says suits any text; config files and runs of version 0.1 mean what they meant."""

import copy
import pathlib
import shutil
import sys

import pytest

from configs import base, mask_ce, published, small
from dfm_jax import config as configs
from dfm_jax.__main__ import main
from dfm_jax.cli.command_line import parse
from dfm_jax.config.base_values import ANY_TEXT
from dfm_jax.run import settings
from dfm_jax.run.begin import as_begun

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "run_v01"
MEASURED = [name for name in ANY_TEXT if name != "data.train"]


def file(tmp_path, *lines: str) -> str:
    path = tmp_path / "mine.py"
    body = "".join(f"    {line}\n" for line in ("config = base.get_config()", *lines, "return config"))
    path.write_text(f"from dfm_jax.configs import base\ndef get_config():\n{body}")
    return str(path)


def test_a_file_that_names_no_text_is_the_published_recipe(tmp_path):
    assert configs.freeze(base.get_config()) == configs.Config() == configs.freeze(published.get_config())
    for copied in (copy.deepcopy(base.get_config()), base.get_config().copy_and_resolve_references()):
        assert configs.freeze(copied) == configs.Config()
    path = file(
        tmp_path, "config.flow.source_distribution = 'mask'", "config.eval.judge = ''", "config.eval.num_samples = 16"
    )
    for config in (parse(["main.py", f"--config={path}"]).config, settings.resolve(path, None)):
        assert config.data.valid == "wikitext103" and config.eval.corpora == ("wikitext103",)
        assert config.eval.time_points == 1024
        assert (config.eval.judge, config.eval.num_samples) == ("", 16)  # what the file says itself


@pytest.mark.parametrize("way", ["in the file", "beside it", "from Python"])
def test_one_with_a_text_is_measured_on_that(tmp_path, way):
    path = file(tmp_path, "config.data.train = 'poem.txt'" if way == "in the file" else "pass")
    if way == "from Python":
        config = settings.resolve(path, {"data.train": pathlib.Path("poem.txt")})
    else:
        config = parse(["main.py", f"--config={path}", *["--config.data.train=poem.txt"] * (way == "beside it")]).config
    assert {name: config[name] for name in MEASURED} == {name: ANY_TEXT[name] for name in MEASURED}
    assert config.model == configs.Config().model


def test_the_published_configs_keep_their_corpora_whatever_is_trained_on():
    config = parse(["main.py", "--config=configs/uniform_gkl.py", "--config.data.train=poem.txt"]).config
    assert config == configs.replace(configs.Config(), {"data.train": "poem.txt"})
    assert configs.freeze(mask_ce.get_config()).eval == configs.Config().eval


def test_a_config_of_small_can_be_changed_in_a_file():
    config = small.get_config()
    config.data.train, config.optim.lr, config.model.n_heads = "poem.txt", 1e-3, 4
    frozen = configs.freeze(config)
    assert not {"optim.lr", "model.n_heads"} & set(frozen.training.auto) and "model.n_blocks" in frozen.training.auto
    assert (frozen.optim.lr, frozen.model.n_heads, frozen.data.valid) == (1e-3, 4, "")


def test_a_run_of_version_0_1_keeps_its_validation_text(tmp_path):
    run = tmp_path / "old"
    shutil.copytree(FIXTURE / "runs" / "old", run)
    saved = configs.load_run(run)
    assert (saved.data.held_out, saved.checkpoint.keep_best, saved.eval.max_blocks) == (0.05, False, 0)
    file_now = configs.replace(saved, {"data.valid": "", "eval.corpora": ("data.valid",)})
    assert as_begun(file_now, run).data.valid == "valid.txt"
    assert as_begun(saved, run) == saved
    assert as_begun(file_now, tmp_path / "new") == file_now


@pytest.mark.slow
def test_a_file_of_0_1_goes_on_with_its_run(tmp_path, monkeypatch, capsys):
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    saved = configs.load_run(pathlib.Path("runs/old")).flat()
    usual = configs.freeze(published.get_config()).flat()
    lines = [
        f"config.{n} = {v!r}" for n, v in saved.items() if v != usual[n] and n not in ("data.valid", "eval.corpora")
    ]
    path = file(tmp_path, *lines)
    monkeypatch.setattr(sys, "argv", ["main.py", f"--config={path}", "--workdir=runs/old", "--config.optim.n_iters=12"])
    assert main() == 0
    assert "continues from step 10" in capsys.readouterr().err
    assert configs.load_run(pathlib.Path("runs/old")).data.valid == "valid.txt"
