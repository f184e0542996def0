"""What a command will need is checked before its first step: nothing is trained, evaluated or sampled in vain."""

import pathlib
import shutil
import sys

import pytest

from dfm_jax import cli
from dfm_jax.__main__ import main
from dfm_jax.runtime.errors import UsageError, WorldError

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "run_v01"
TINY_JUDGE = FIXTURE.parent / "tiny_gpt2"
FIELDS = {
    **{"data.train": "text.txt", "data.valid": "text.txt", "data.cache_dir": "data", "data.num_workers": 1},
    **{"training.batch_size": 4, "optim.n_iters": 2, "optim.warmup": 1},
    **{"model.hidden_size": 32, "model.cond_dim": 16, "model.length": 16, "model.n_blocks": 1, "model.n_heads": 2},
    **{"eval.corpora": "text.txt", "eval.perplexity": "true"},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("text.txt").write_text("a text of some length, " * 50)
    pathlib.Path("short.txt").write_text("short")
    pathlib.Path("judge").mkdir()
    pathlib.Path("judge/config.json").write_text('{"model_type": "gpt2"}')


def train(*changes: str) -> None:
    given = FIELDS | dict(change.split("=", 1) for change in changes)
    words = [f"--config.{name}={value}" for name, value in given.items()]
    cli.run(cli.parse(["main.py", "--config=configs/quickstart.py", "--workdir=run", *words]))


@pytest.mark.parametrize(
    ("change", "kind", "line"),
    [
        ("data.valid=short.txt", WorldError, r"config.data.valid = short.txt: 6 tokens, not one block"),
        ("eval.corpora=text.txt,short.txt", WorldError, r"config.eval.corpora = short.txt: 6 tokens, not one block"),
        ("eval.corpora=nowhere.txt", WorldError, r"config.eval.corpora = nowhere.txt"),
        ("eval.judge=nowhere/gpt2x/y", WorldError, r"config.eval.judge = nowhere/gpt2x/y: expected a GPT-2, or"),
        ("eval.judge=judge", WorldError, r"config.eval.judge = judge: .*model.safetensors: there is no such file"),
        (f"eval.judge={TINY_JUDGE}", WorldError, r"config.eval.judge = .*vocab_size = 53: expected 50257"),
        ("model.attention=cudnn", UsageError, r"config.model.attention = cudnn: "),
        ("checkpoint.restore_from=nowhere", WorldError, r"config.checkpoint.restore_from ?= ?nowhere: "),
    ],
)
def test_training_does_not_begin(change, kind, line):
    with pytest.raises(kind, match=f"^{line}") as error:
        train(change)
    assert "\n" not in str(error.value)
    assert not pathlib.Path("run/metrics.jsonl").exists() and not pathlib.Path("run/checkpoints").exists()


def test_a_file_where_reports_go_is_said_before_training():
    pathlib.Path("run").mkdir()
    pathlib.Path("run/eval").write_text("in the way")
    with pytest.raises(WorldError, match=r"^workdir ?= ?run/eval: "):
        train()
    assert not pathlib.Path("run/metrics.jsonl").exists()


def use(*words: str) -> None:
    shutil.copytree(FIXTURE, ".", dirs_exist_ok=True)
    cli.run(cli.parse(["main.py", "--workdir=runs/old", *words]))


@pytest.mark.parametrize(
    ("words", "kind", "line"),
    [
        (["--mode=eval", "--config.eval.corpora=short.txt"], WorldError, "config.eval.corpora = short.txt: 6 tokens"),
        (
            ["--mode=eval", "--eval_perplexity", "--config.eval.judge=nowhere/gpt2x/y"],
            WorldError,
            "config.eval.judge = nowhere/gpt2x/y: ",
        ),
        (["--mode=eval", "--frontier"], UsageError, r"config.eval.judge = \(empty\): expected the name or folder"),
        (["--mode=eval", "--noeval_elbo", "--noeval_perplexity"], UsageError, "config.eval.elbo = false: expected"),
        (["--mode=eval", "--output=short.txt"], WorldError, "output ?= ?short.txt/eval: "),
        (["--mode=sample", "--output=short.txt"], WorldError, "output ?= ?short.txt/samples: "),
        (["--mode=sample", "--config.model.attention=cudnn"], UsageError, "config.model.attention = cudnn: "),
        (["--mode=sample", "--prompt=<gap:0>"], UsageError, "prompt ?= ?'<gap:0>'"),
        (["--mode=sample", "--step=3"], WorldError, "step ?= ?3: "),
        (["--mode=export", "--output=runs"], UsageError, "output = runs: expected the name of a file"),
    ],
)
def test_a_run_is_not_used_in_vain(words, kind, line, monkeypatch):
    monkeypatch.setattr("dfm_jax.run.load.sharding.state_shardings", None)  # no parameter is read
    with pytest.raises(kind, match=f"^{line}") as error:
        use(*words)
    assert "\n" not in str(error.value)


def test_samples_go_where_they_are_wanted():
    use("--mode=sample", "--output=mine", "--config.sampling.num=1", "--config.sampling.steps=2")
    assert pathlib.Path("mine/samples/step_10.txt").is_file()
    after, before = (
        {p.relative_to(root) for p in root.rglob("*")} for root in map(pathlib.Path, ("runs", FIXTURE / "runs"))
    )
    assert after == before


@pytest.mark.slow
def test_figures_are_printed_before_they_are_filed(monkeypatch, capsys):
    shutil.copytree(FIXTURE, ".", dirs_exist_ok=True)

    def full(*arguments):
        raise OSError(28, "No space left on device", "report.md")

    monkeypatch.setattr("dfm_jax.evaluation.evaluate.write_report", full)
    monkeypatch.setattr(sys, "argv", ["main.py", "--mode=eval", "--workdir=runs/old", "--output=else"])
    assert main() == 1
    told = capsys.readouterr()
    assert "exp(ELBO per token)" in told.out and "nats/token" in told.out and "No space left on device" in told.err
    assert pathlib.Path("else/eval").is_dir()
