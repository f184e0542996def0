"""From words to a checked command, and each wrong word to one line."""

import json
import pathlib
import re

import pytest

from dfm_jax import command_line, config, flow, problem
from dfm_jax.errors import UsageError, WorldError

QUICKSTART = "--config=configs/quickstart.py"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def parse(*words: str) -> command_line.Command:
    return command_line.parse(["main.py", *words])


def make_run(folder: pathlib.Path, **changes) -> pathlib.Path:
    settings = parse(QUICKSTART).config
    with settings.unlocked():
        settings.update_from_flattened_dict(changes)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json(settings))
    return folder


def test_training_goes_to_a_folder_named_after_the_config():
    command = parse(QUICKSTART)
    assert command.mode == "train"
    assert command.workdir == pathlib.Path("runs/quickstart")
    assert command.config.tokenizer.name == "bytes"


@pytest.mark.parametrize("words", [("--workdir=here",), ("--workdir", "here")])
def test_a_folder_can_be_given(words):
    assert parse(QUICKSTART, *words).workdir == pathlib.Path("here")


def test_overrides_take_the_type_of_their_field():
    settings = parse(
        QUICKSTART,
        "--config.optim.lr=1e-3",
        "--config.optim.n_iters=1e6",
        "--config.training.batch_size=1_024",
        "--config.model.qk_norm=true",
        "--config.eval.corpora=lambada, ptb",
        "--config.eval.judge=",
        "--config.flow.exponent=2",
        "--config.data.train",
        "wikitext103@wiki.raw",
    ).config
    assert settings.optim.lr == 1e-3
    assert settings.optim.n_iters == 1_000_000
    assert settings.training.batch_size == 1024
    assert settings.model.qk_norm is True
    assert settings.eval.corpora == ("lambada", "ptb")
    assert settings.eval.judge == ""
    assert settings.flow.exponent == 2.0 and isinstance(settings.flow.exponent, float)
    assert settings.data.train == "wikitext103@wiki.raw"


def test_a_tuple_may_be_written_as_python_writes_it():
    assert parse(QUICKSTART, "--config.eval.corpora=('a', 'b')").config.eval.corpora == ("a", "b")
    assert parse(QUICKSTART, "--config.eval.corpora=a").config.eval.corpora == ("a",)


def test_evaluation_takes_the_newest_run_and_its_config(tmp_path):
    make_run(tmp_path / "runs" / "old", **{"optim.lr": 1.0})
    import os

    os.utime(tmp_path / "runs" / "old" / "config.json", (1, 1))
    make_run(tmp_path / "runs" / "new", **{"optim.lr": 0.5})
    command = parse("--mode=eval", "--config.eval.time_points=7")
    assert command.workdir == pathlib.Path("runs/new")
    assert command.config.optim.lr == 0.5
    assert command.config.eval.time_points == 7


def test_training_again_needs_only_the_folder(tmp_path):
    make_run(tmp_path / "run", **{"optim.lr": 0.25})
    assert parse("--workdir=run").config.optim.lr == 0.25


def test_eval_switches_are_short_for_config_fields(tmp_path):
    make_run(tmp_path / "run")
    settings = parse("--mode=eval", "--workdir=run", "--eval_elbo", "--noeval_perplexity").config
    assert settings.eval.elbo is True and settings.eval.perplexity is False


def test_a_config_survives_json():
    settings = parse(QUICKSTART).config
    again = config.from_json(config.to_json(settings))
    assert again.to_dict() == settings.to_dict()
    assert isinstance(again.eval.corpora, tuple)
    assert json.loads(config.to_json(settings))["optim"]["lr"] == settings.optim.lr


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "a config that a run saved"),
        (b"\xff\xfe", "a config that a run saved"),
        (b"[1]", "an object of groups of fields"),
        (b'{"optim": 3}', "an object of groups of fields"),
        (b'{"optim": {"lr": null}}', "optim.lr=None: accepted is a number"),
        (b'{"model": {"n_heads": "4"}}', "model.n_heads='4': accepted is an integer"),
        (b'{"model": {"qk_norm": 1}}', "model.qk_norm=1: accepted is true or false"),
        (b'{"eval": {"corpora": [1]}}', "eval.corpora=(1,): accepted is a list of texts"),
        (b'{"optim": {"speed": 1}}', "optim.speed is no field"),
    ],
)
def test_a_damaged_saved_config_gives_one_line(tmp_path, text, part):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(WorldError, match=re.escape(part)) as caught:
        parse("--mode=eval", f"--workdir={tmp_path}")
    assert "config.json" in str(caught.value) and "accepted" in str(caught.value)


def test_a_config_file_that_disables_with_none_gives_one_line(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import base\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    config.optim.grad_clip = None\n"
        "    return config\n"
    )
    with pytest.raises(UsageError, match=r"optim.grad_clip=None: accepted is a number"):
        config.check(parse("--config=mine.py").config)


WRONG = {
    "mode": ([QUICKSTART, "--mode=fly"], ["mode=fly", "train", "sample"]),
    "no config": (["--mode=train"], ["config=", "configs/quickstart.py"]),
    "missing config": (["--config=configs/nothing.py"], ["configs/nothing.py", "get_config"]),
    "unknown flag": ([QUICKSTART, "--promt=x"], ["promt=x: accepted flags are", "(did you mean --prompt?)"]),
    "flag of another mode": ([QUICKSTART, "--prompt=x"], ["prompt=x", "--mode=sample"]),
    "not a flag": ([QUICKSTART, "train"], ["train", "--"]),
    "bad integer flag": (["--mode=eval", "--step=x"], ["step=x: accepted is an integer of 0 or more"]),
    "negative integer flag": (["--mode=eval", "--step=-1"], ["step=-1: accepted is an integer of 0 or more"]),
    "bad switch": ([QUICKSTART, "--mode=prepare", "--verify=maybe"], ["verify=maybe: accepted is true or false"]),
    "unknown field": ([QUICKSTART, "--config.optim.lrr=1"], ["optim.lrr", "optim.lr"]),
    "unknown group": ([QUICKSTART, "--config.optimizer.lr=1"], ["optimizer.lr", "optim.lr"]),
    "not a number": ([QUICKSTART, "--config.optim.lr=fast"], ["optim.lr=fast", "a number"]),
    "not an integer": ([QUICKSTART, "--config.training.batch_size=1.5"], ["batch_size=1.5", "an integer"]),
    "not a bool": ([QUICKSTART, "--config.model.qk_norm=maybe"], ["qk_norm=maybe", "true or false"]),
    "override without a value": ([QUICKSTART, "--config.optim.lr"], ["optim.lr=(missing)"]),
    "field without its prefix": ([QUICKSTART, "--optim.lr=1"], ["--config.optim.lr"]),
    "gone: group": ([QUICKSTART, "--config.compute.ngpus=8"], ["compute.ngpus", "config.mesh"]),
    "gone: field": ([QUICKSTART, "--config.model.compile=true"], ["model.compile", "gone"]),
    "gone: flag": ([QUICKSTART, "--hydra_dir=x"], ["hydra_dir", "--workdir"]),
    "eval without a run": (["--mode=eval"], ["workdir=(none)", "runs/"]),
    "eval of no run": (["--mode=eval", "--workdir=nowhere"], ["workdir=nowhere", "config.json"]),
}


@pytest.mark.parametrize("words, parts", WRONG.values(), ids=WRONG)
def test_a_wrong_word_gives_one_line(words, parts):
    with pytest.raises(UsageError) as caught:
        parse(*words)
    line = str(caught.value)
    assert "\n" not in line and "accepted" in line
    for part in parts:
        assert part in line


FIELDS = {
    "flow.scheduler_type": ("poly", "polynomial"),
    "flow.source_distribution": ("gaussian", "mask"),
    "flow.loss_function": ("mse", "generalized_kl"),
    "optim.name": ("sgdd", "adamw"),
    "optim.warmup": ("9999", "optim.n_iters"),
    "optim.grad_clip": ("-1", "0 or more"),
    "model.n_heads": ("3", "hidden_size"),
    "model.dropout": ("1.0", "[0, 1)"),
    "training.batch_size": ("0", "above 0"),
    "training.snapshot": ("99999999999999999999", "below 2**31"),
    "optim.n_iters": ("3e9", "below 2**31"),
    "training.grad_accum": ("5", "batch_size"),
    "sampling.method": ("magic", "exact"),
    "sampling.top_p": ("0", "(0, 1]"),
    "tokenizer.name": ("words", "gpt2"),
    "model.time_conditioning": ("false", "True"),
    "sampling.scheduler": ("cosine", "accepted"),
}


@pytest.mark.parametrize("field, wrong, part", [(f, *v) for f, v in FIELDS.items()], ids=FIELDS)
def test_a_wrong_field_gives_one_line(field, wrong, part):
    settings = parse(QUICKSTART, f"--config.{field}={wrong}").config
    with pytest.raises(UsageError) as caught:
        config.check(settings)
    line = str(caught.value)
    assert "\n" not in line and "accepted" in line
    assert part in line


def test_exponents_are_learned_from_a_bound_alone():
    """Under cross-entropy they would only make sure that what is hard to tell is revealed first."""
    words = ("--config=configs/mask_genmd4.py", "--config.flow.loss_function")
    config.check(parse(words[0], f"{words[1]}=generalized_kl").config)
    settings = parse(words[0], f"{words[1]}=cross_entropy").config
    with pytest.raises(UsageError, match=r"flow\.exponents=learned: accepted is with a bound"):
        config.check(settings)


@pytest.mark.parametrize("name", ["quickstart", "uniform_gkl", "uniform_ce", "mask_gkl", "mask_ce"])
def test_the_shipped_configs_are_right(name):
    config.check(parse(f"--config=configs/{name}.py").config)


@pytest.mark.parametrize("name", flow.SCHEDULERS)
def test_every_scheduler_may_train_and_sample(name):
    settings = parse(QUICKSTART, f"--config.flow.scheduler_type={name}").config
    config.check(settings)
    assert problem.get_scheduler(settings, 5) == flow.get_scheduler(name, vocab_size=5)
    # The exponent of training goes to the schedulers that have one, and does not stand in the way of the others.
    settings = parse(QUICKSTART, "--config.flow.exponent=2", f"--config.sampling.scheduler={name}").config
    config.check(settings)
    exponent = {"polynomial": 2.0, "one_minus_power": 2.0}.get(name, 1.0)
    expected = flow.get_scheduler(name, exponent=exponent, vocab_size=5)
    assert problem.get_sampling_scheduler(settings, 5) == expected
