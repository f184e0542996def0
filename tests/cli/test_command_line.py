"""From words to a checked command, and each wrong word to one line."""

import pathlib

import pytest

from dfm_jax import config
from dfm_jax.__main__ import main
from dfm_jax.cli import command_line
from dfm_jax.runtime.errors import UsageError, WorldError

QUICKSTART = "--config=configs/quickstart.py"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def parse(*words: str) -> command_line.Command:
    return command_line.parse(["main.py", *words])


def make_run(folder: pathlib.Path, **changes) -> pathlib.Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json(config.replace(parse(QUICKSTART).config, changes)))
    return folder


def test_training_goes_to_a_folder_named_after_the_config():
    command = parse(QUICKSTART)
    assert command.mode == "train"
    assert command.workdir == pathlib.Path("runs/quickstart")
    assert command.config.tokenizer.name == "bytes"


@pytest.mark.parametrize("words", [("--workdir=here",), ("--workdir", "here"), ("-workdir=here",)])
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


def test_the_last_of_several_overrides_and_folders_holds():
    """A script passes its own and then what it was given, as launch/slurm.sbatch does."""
    assert parse(QUICKSTART, "--config.optim.lr=1", "--config.optim.lr=2").config.optim.lr == 2
    assert parse(QUICKSTART, "--workdir=a", "--workdir=b").workdir == pathlib.Path("b")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("('a', 'b')", ("a", "b")),
        ("a", ("a",)),
        ("(a, b)", ("a", "b")),
        ("[a,b]", ("a", "b")),
        ("('a,b=c:[d].txt',)", ("a,b=c:[d].txt",)),
        ("'a b'", ("'a b'",)),
        ("(5)", ("5",)),
        ("a=b:c[d]/*.txt", ("a=b:c[d]/*.txt",)),
    ],
)
def test_names_as_people_and_python_write_them(text, names):
    assert parse(QUICKSTART, f"--config.eval.corpora={text}").config.eval.corpora == names


def test_a_path_with_any_characters_can_be_written(tmp_path):
    odd = tmp_path / "a=b:c [d]" / "[e,f]"
    odd.mkdir(parents=True)
    (odd / "x:y=1.txt").write_text("text")
    file = f"{odd}/x:y=1.txt"
    command = parse(
        QUICKSTART, f"--workdir={odd}", f"--config.data.train={file}", "--config.data.valid", file,
        f"--config.eval.corpora={odd}",
    )  # fmt: skip
    assert command.workdir == odd
    assert command.config.data.train == command.config.data.valid == file
    assert command.config.eval.corpora == (str(odd),)


@pytest.mark.parametrize(
    ("field", "text", "path"),
    [
        ("data.train", "~/a.txt", "HOME/a.txt"),
        ("data.valid", "wikitext103@~/wiki", "wikitext103@HOME/wiki"),
        ("data.cache_dir", "~/shards", "HOME/shards"),
        ("flow.exponents", "~/w.npy", "HOME/w.npy"),
        ("flow.embeddings", "~/run", "HOME/run"),
        ("eval.judge", "~/gpt2", "HOME/gpt2"),
        ("eval.corpora", "~/a.txt,b.txt", ("HOME/a.txt", "b.txt")),
        ("checkpoint.restore_from", "~/run:5", "HOME/run:5"),
    ],
)
def test_the_home_folder_in_every_field_that_takes_a_path(field, text, path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    def there(value):
        return value.replace("HOME", str(tmp_path))

    expected = tuple(map(there, path)) if isinstance(path, tuple) else there(path)
    assert parse(QUICKSTART, f"--config.{field}={text}").config[field] == expected
    (tmp_path / "mine.py").write_text(
        "from dfm_jax.configs import base\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        f"    config.{field} = {tuple(text.split(',')) if field == 'eval.corpora' else text!r}\n"
        "    return config\n"
    )
    assert parse("--config=~/mine.py").config[field] == expected


def test_the_home_folder_in_every_operand_that_takes_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_run(tmp_path / "run")
    command = parse("--mode=sample", "--workdir=~/run", "--prompt_file=~/p.txt")
    assert command.workdir == tmp_path / "run" and command.operands["prompt_file"] == f"{tmp_path}/p.txt"
    assert parse("--mode=eval", "--compare=~/run, ~/other").operands["compare"] == f"{tmp_path}/run,{tmp_path}/other"
    command = parse("--mode=import", "--from=~/a.pth", "--workdir", "~/new")
    assert command.operands["from"] == f"{tmp_path}/a.pth" and command.workdir == tmp_path / "new"


def test_a_value_may_look_like_anything_that_is_no_flag(tmp_path):
    make_run(tmp_path / "run")
    for prompt in ("- 1.5 of it", "compute", "-x", "hydra_dir=1", "-- a", "config.optim.lr"):
        assert parse("--mode=sample", "--workdir=run", "--prompt", prompt).operands["prompt"] == prompt
    assert parse("--mode=sample", "--workdir=run", "--prompt=--step=3").operands["prompt"] == "--step=3"
    assert parse("--mode=sample", "--workdir=run", "--prompt=").operands["prompt"] == ""


def test_an_operand_that_may_stand_alone():
    words = ("--mode=compile", QUICKSTART)
    assert parse(*words, "--sweep", "--target=h100:8").operands["sweep"] == "all"
    assert parse(*words, "--sweep", "mesh,batch").operands["sweep"] == "mesh,batch"
    assert parse(*words, "--sweep").operands["sweep"] == "all"


def test_evaluation_takes_the_newest_run_and_its_config(tmp_path):
    make_run(tmp_path / "runs" / "old", **{"optim.lr": 1.0})
    import os

    os.utime(tmp_path / "runs" / "old" / "config.json", (1, 1))
    make_run(tmp_path / "runs" / "new", **{"optim.lr": 0.5})
    command = parse("--mode=eval", "--config.eval.time_points=7")
    assert command.workdir == pathlib.Path("runs/new")
    assert command.config.optim.lr == 0.5
    assert command.config.eval.time_points == 7


def test_evaluation_of_a_config_never_takes_the_run_of_another(tmp_path):
    make_run(tmp_path / "runs" / "uniform_gkl")
    for mode in command_line.ON_A_RUN:
        with pytest.raises(UsageError, match=r"config = configs/quickstart.py: there is no run of it in runs/quick"):
            parse(f"--mode={mode}", QUICKSTART)
        assert parse(f"--mode={mode}", QUICKSTART, "--workdir=runs/uniform_gkl").config_was_given
    make_run(tmp_path / "runs" / "quickstart")
    assert parse("--mode=eval", QUICKSTART).workdir == pathlib.Path("runs/quickstart")


def test_training_again_needs_only_the_folder(tmp_path):
    make_run(tmp_path / "run", **{"optim.lr": 0.25})
    assert parse("--workdir=run").config.optim.lr == 0.25


def test_switches(tmp_path):
    make_run(tmp_path / "run")
    settings = parse("--mode=eval", "--workdir=run", "--eval_elbo", "--noeval_perplexity").config
    assert settings.eval.elbo is True and settings.eval.perplexity is False
    settings = parse("--mode=eval", "--workdir=run", "--eval_elbo=false", "--eval_perplexity=1").config
    assert settings.eval.elbo is False and settings.eval.perplexity is True


WRONG = {
    "mode": ([QUICKSTART, "--mode=fly"], ["mode = fly: expected one of", "train", "sample"]),
    "two modes": (["--mode=eval", "--mode=train"], ["mode = train: given before as eval; expected once"]),
    "two configs": ([QUICKSTART, "--config=mask_ce"], ["config = mask_ce: given before as configs/quickstart.py"]),
    "two switches": (
        [QUICKSTART, "--mode=prepare", "--verify", "--noverify"],
        ["verify = False: given before"],
    ),
    "empty mode": ([QUICKSTART, "--mode="], ["mode = (empty): expected --mode=VALUE, one of train"]),
    "empty folder": ([QUICKSTART, "--workdir="], ["workdir = (empty): expected --workdir=VALUE, folder"]),
    "blank folder": ([QUICKSTART, "--workdir", " "], ["workdir = (empty)"]),
    "empty config": (["--config="], ["config = (empty)"]),
    "empty import": (["--mode=import", "--from="], ["from = (empty)"]),
    "no config": (["--mode=train"], ["config = (missing)", "configs/quickstart.py"]),
    "missing config": (["--config=configs/nothing.py"], ["config = configs/nothing.py: no such file", "get_config"]),
    "unknown flag": ([QUICKSTART, "--promt=x"], ["promt = x: expected one of --mode", "(did you mean --prompt?)"]),
    "a field's other name": (
        [QUICKSTART, "--learning_rate=1"],
        ["learning_rate = 1", "mean --config.optim.lr?"],
    ),
    "flag of another mode": (
        [QUICKSTART, "--prompt=x"],
        ["prompt = x: expected with --mode=sample only"],
    ),
    "not a flag": ([QUICKSTART, "train"], ["train: expected flags that begin with --"]),
    "a dash alone": ([QUICKSTART, "--"], ["--: expected flags"]),
    "a flag for a value": (["--mode=sample", "--prompt", "--step=3"], ["prompt = (missing): expected --prompt=VALUE"]),
    "no value": (["--mode=sample", "--prompt"], ["prompt = (missing): expected --prompt=VALUE"]),
    "bad integer flag": (["--mode=eval", "--step=x"], ["step = x: expected an integer of 0 or more"]),
    "negative integer flag": (["--mode=eval", "--step=-1"], ["step = -1: expected an integer of 0 or more"]),
    "huge integer flag": (["--mode=eval", f"--step={'9' * 5000}"], ["expected an integer of 0 or more"]),
    "bad switch": ([QUICKSTART, "--mode=prepare", "--verify=maybe"], ["verify = maybe: expected true or false"]),
    "unknown field": ([QUICKSTART, "--config.optim.lrr=1"], ["config.optim.lrr = 1", "did you mean config.optim.lr?"]),
    "unknown group": ([QUICKSTART, "--config.optimizer.lr=1"], ["optimizer.lr = 1", "did you mean config.optim.lr?"]),
    "not a number": ([QUICKSTART, "--config.optim.lr=fast"], ["config.optim.lr = fast: expected a number above 0"]),
    "not an integer": ([QUICKSTART, "--config.training.batch_size=1.5"], ["batch_size = 1.5: expected an integer"]),
    "not a bool": ([QUICKSTART, "--config.model.qk_norm=maybe"], ["qk_norm = maybe: expected true or false"]),
    "override without a value": ([QUICKSTART, "--config.optim.lr"], ["config.optim.lr = (missing)"]),
    "override before a flag": (["--config.optim.lr", QUICKSTART], ["config.optim.lr = (missing)"]),
    "field without its prefix": ([QUICKSTART, "--optim.lr=1"], ["optim.lr = 1: expected --config.optim.lr=VALUE"]),
    "gone: group": ([QUICKSTART, "--config.compute.ngpus=8"], ["config.compute.ngpus = 8: gone", "config.mesh"]),
    "gone: field": ([QUICKSTART, "--config.model.compile=true"], ["config.model.compile = true: gone"]),
    "gone: flag": ([QUICKSTART, "--hydra_dir=x"], ["hydra_dir = x: gone; expected --workdir"]),
    "gone: word": ([QUICKSTART, "compute.ngpus=8"], ["compute.ngpus=8: gone", "config.mesh"]),
    "eval without a run": (["--mode=eval"], ["workdir = (none)", "runs/"]),
    "eval of no run": (["--mode=eval", "--workdir=nowhere"], ["workdir = nowhere: expected", "config.json"]),
}


@pytest.mark.parametrize("words, parts", WRONG.values(), ids=WRONG)
def test_a_wrong_word_gives_one_line(words, parts):
    with pytest.raises(UsageError) as caught:
        parse(*words)
    line = str(caught.value)
    assert "\n" not in line and "expected" in line
    for part in parts:
        assert part in line


def test_a_config_file_with_a_value_that_is_none_gives_one_line(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import base\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    config.optim.grad_clip = None\n"
        "    return config\n"
    )
    with pytest.raises(UsageError, match=r"config.optim.grad_clip = None: expected a number"):
        parse("--config=mine.py")


def test_a_damaged_saved_config_gives_one_line(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(WorldError, match=r"config.json: .*; expected a config that a run saved"):
        parse("--mode=eval", f"--workdir={tmp_path}")


def test_help_lists_every_field(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py", "--help=config"])
    assert main() == 0
    text = capsys.readouterr().out
    for field in config.TABLE.values():
        assert f"  {field.name} = " in text and field.meaning.split()[0] in text
    monkeypatch.setattr("sys.argv", ["main.py", "--help=modes"])
    assert main() == 2 and capsys.readouterr().err.startswith("error: help = modes: expected --help, or --help=config")
