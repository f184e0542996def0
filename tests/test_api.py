"""The Python face: every verb on a tiny run, as in a notebook (slow), and what is refused or must stay as it was."""

import inspect
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import ml_collections
import numpy as np
import pytest

import dfm_jax
import programs
from dfm_jax import config as configs
from dfm_jax.data import get_tokenizer
from dfm_jax.evaluation import evaluate as judged
from dfm_jax.evaluation.judge.gpt2 import load_gpt2
from dfm_jax.run import preflight
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.lock import RunLock

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
VERBS = [name for name in dfm_jax.__all__ if name != "flow"]
TINY = {
    **{"data.train": "text.txt", "data.valid": "text.txt", "data.cache_dir": "data", "data.num_workers": 1},
    **{"training.batch_size": 8, "training.eval_freq": 0, "training.snapshot": 2},
    **{"optim.n_iters": 4, "optim.warmup": 2, "logging.log_freq": 1},
    **{"model.hidden_size": 32, "model.cond_dim": 16, "model.length": 32, "model.n_blocks": 1, "model.n_heads": 2},
    **{"eval.corpora": ("text.txt",), "eval.time_points": 2, "eval.num_samples": 2, "eval.perplexity": False},
    **{"flow.sampling_steps": 4, "sampling.num": 2, "sampling.batch_size": 2},
}


@pytest.fixture(autouse=True)
def in_a_folder_with_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The same text, many times over. " * 100)


def test_importing_is_light_and_changes_nothing():
    code = (
        "import logging, sys\n"
        "import dfm_jax\n"
        "heavy = {'jax', 'numpy', 'flax', 'orbax', 'absl'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "help(dfm_jax.train); assert 'jax' not in sys.modules\n"
        "import dfm_jax.run.load\n"
        f"dfm_jax.load({str(FIXTURES / 'run_v01/runs/old')!r})\n"
        "assert logging.root.handlers == [], logging.root.handlers\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=programs.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_verbs_are_shown_and_say_how_they_are_used():
    assert {"flow", *VERBS} <= set(dir(dfm_jax))
    for name in VERBS:
        said = inspect.getdoc(getattr(dfm_jax, name))  # Python 3.13 takes the indentation away itself.
        for part in ("Raises:", "Example:\n    >>> "):
            assert part in said, (name, part)
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        dfm_jax.fly  # noqa: B018


def test_a_config_is_named_in_four_ways():
    from dfm_jax.run.settings import resolve

    dictionary = configs.load_file(str(configs.find_config("quickstart")))
    assert isinstance(dictionary, ml_collections.ConfigDict)
    by_name = resolve("quickstart", {"optim.lr": np.float32(0.5)}, "train")
    assert by_name.optim.lr == 0.5
    for way in ("configs/quickstart.py", configs.find_config("quickstart"), dictionary, configs.freeze(dictionary)):
        assert resolve(way, {"optim.lr": 0.5}, "train") == by_name
    assert resolve(FIXTURES / "run_v01" / "runs" / "old", None).flow.loss_function == "time_reversal"


QUICK = configs.Config()
WRONG = {
    "no config": (lambda: dfm_jax.train("nothing"), "config = nothing: no such file; expected"),
    "a number": (lambda: dfm_jax.train(5, "run"), "config = 5: expected the name of a config"),
    "a dict": (lambda: dfm_jax.train({"optim.lr": 1}, "run"), "config = {'optim.lr': 1}: expected the name"),
    "no folder": (lambda: dfm_jax.train(QUICK), "workdir = None: expected a folder"),
    "empty folder": (lambda: dfm_jax.train("quickstart", ""), "workdir = '': expected a path"),
    "a field": (
        lambda: dfm_jax.train("quickstart", overrides={"optim.lrr": 1}),
        "config.optim.lrr = 1: expected .*did you mean config.optim.lr",
    ),
    "a value": (lambda: dfm_jax.train("quickstart", overrides={"optim.lr": -1}), "config.optim.lr = -1"),
    "a type": (lambda: dfm_jax.train("quickstart", overrides={"optim.lr": "1e-3"}), "config.optim.lr = 1e-3"),
    "together": (
        lambda: dfm_jax.train("quickstart", overrides={"model.n_heads": 3}),
        "config.model.hidden_size = 128: expected a multiple of 2",
    ),
    "float16": (
        lambda: dfm_jax.train("quickstart", overrides={"model.compute_dtype": "float16"}),
        "config.model.compute_dtype = float16: expected",
    ),
    "no overrides": (lambda: dfm_jax.prepare("quickstart", overrides=[1]), r"overrides = \[1\]: expected fields"),
    "shard": (lambda: dfm_jax.prepare("quickstart", shard=(2, 2)), r"shard\[0\] = 2: expected an integer from 0 to 1"),
    "no shard": (lambda: dfm_jax.prepare("quickstart", shard="0/2"), r"shard = '0/2': expected \(i, n\)"),
    "no run": (lambda: dfm_jax.evaluate(5), "run = 5: expected a loaded run or its folder"),
    "num": (lambda: dfm_jax.sample("run", -1), "num = -1: expected an integer from 0"),
    "prompt": (lambda: dfm_jax.sample("run", 1, prompt=5), "prompt = 5: expected a text"),
    "no runs": (lambda: dfm_jax.compare([]), r"runs = \[\]: expected a list"),
    "file": (lambda: dfm_jax.import_weights(None), "file = None: expected a path"),
    "target": (lambda: dfm_jax.plan("quickstart", "pdp11:8", workdir="plan"), "target = pdp11"),
    "no target": (lambda: dfm_jax.plan("quickstart", None, workdir="plan"), "target"),
    "benchmark": (lambda: dfm_jax.benchmark("quickstart", "b", only=["fly"]), "only ?= ?fly: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_nonsense_is_a_value_error_that_names_the_argument(case):
    call, line = WRONG[case]
    with pytest.raises(ValueError, match=f"^{line}") as error:
        call()
    assert "\n" not in str(error.value)
    assert sorted(os.listdir()) == ["text.txt"]


@pytest.mark.parametrize("verb", ["load", "evaluate", "sample", "export", "frontier"])
def test_a_run_that_is_not_there(verb):
    with pytest.raises(WorldError, match="nowhere: "):
        getattr(dfm_jax, verb)("nowhere")


@pytest.mark.slow
def test_a_notebook_through_every_verb(capsys, monkeypatch, tmp_path):
    folders = dfm_jax.prepare("quickstart", overrides=TINY, verify=True)
    assert set(folders) == {"data.train", "data.valid"} and all(folder.is_dir() for folder in folders.values())

    run = dfm_jax.train("quickstart", "runs/first", overrides=TINY)
    assert run.step == 4 and run.config.optim.n_iters == 4
    again = dfm_jax.train(run.config, "runs/first", overrides={"optim.n_iters": 6})
    assert again.step == 6 and dfm_jax.load("runs/first", step=4).step == 4

    assert not [h for h in logging.root.handlers if type(h) is logging.StreamHandler]  # pytest has its own

    report = dfm_jax.evaluate(again, output="elsewhere")
    (entry,) = report.likelihood.values()
    assert all(np.isfinite(bound["nats_per_token"]) for bound in entry["bounds"].values()) and not report.missing
    assert pathlib.Path("elsewhere/eval/step_6.json").is_file()
    assert f"{next(iter(entry['bounds'].values()))['nats_per_token']:.4f}" in capsys.readouterr().out
    fewer = dfm_jax.evaluate("runs/first", step=4, overrides={"eval.time_points": 1})
    assert fewer.step == 4 and pathlib.Path("runs/first/eval/step_4.json").is_file()
    with pytest.raises(ValueError, match=r"config.eval.judge = \(empty\): expected .* which the frontier needs"):
        dfm_jax.frontier(again)
    with pytest.raises(WorldError, match="vocab_size = 53: expected 50257"):
        dfm_jax.frontier(again, overrides={"eval.judge": str(FIXTURES / "tiny_gpt2")})
    monkeypatch.setattr(preflight, "find_judge", lambda name, vocab_size: None)
    monkeypatch.setattr(judged, "load_judge", lambda name: load_gpt2(FIXTURES / "tiny_gpt2"))
    monkeypatch.setattr(judged, "get_tokenizer", lambda name: get_tokenizer("bytes"))
    monkeypatch.setattr(judged.Judge, "nll_sums", lambda self, tokens, weights: weights.sum(axis=1))  # exp(1) a token
    points = dfm_jax.frontier(again, overrides={"eval.judge": "tiny", "eval.num_samples": 1})
    assert len({(point["steps"], point["temperature"]) for point in points}) == len(points) > 4
    np.testing.assert_allclose([point["ppl_token_mean"] for point in points], np.e, rtol=1e-6)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert dfm_jax.compare([again, "elsewhere"]).count("|") > 4

    texts = dfm_jax.sample(again, 3, prompt="The same", output="elsewhere")
    assert len(texts) == 3 and all(text.startswith("The same") for text in texts)
    assert dfm_jax.sample("runs/first", 3, prompt="The same") == texts  # the same seed
    assert pathlib.Path("runs/first/samples/step_6.html").is_file()
    assert again.sample(3, prompt="The same") == texts

    file = dfm_jax.export(again)
    assert file == pathlib.Path("runs/first/export/step_6.safetensors")
    imported = dfm_jax.import_weights(file, "runs/imported", config=again.config)
    np.testing.assert_array_equal(imported.logits([[1, 2, 3]], 0.5), again.logits([[1, 2, 3]], 0.5))
    measured = dfm_jax.benchmark(again.config, "bench", only="loader")
    assert measured["rows"] and pathlib.Path("bench/benchmark.md").is_file()


@pytest.mark.slow
def test_an_interrupt_leaves_the_process_usable():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    lines = pathlib.Path("run/metrics.jsonl")

    def interrupt() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not (lines.exists() and lines.stat().st_size):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    changes = TINY | {"optim.n_iters": 100000, "training.snapshot": 0, "eval.elbo": False}
    with pytest.raises(KeyboardInterrupt, match="the same call continues the run in run"):
        dfm_jax.train("quickstart", "run", overrides=changes)
    thread.join()
    assert {number: signal.getsignal(number) for number in before} == before
    with RunLock("run"):
        pass
    step = dfm_jax.load("run").step
    assert 0 < step < 100000
    assert dfm_jax.train("quickstart", "run", overrides=changes | {"optim.n_iters": step + 2}).step == step + 2
