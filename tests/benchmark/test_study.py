"""The study of sources, losses and samplers, from training to its tables and picture, with almost nothing to do."""

import json
import pathlib
import sys

import numpy as np
import pytest

from benchmarks import runs_compared, study, study_report
from benchmarks.judge_scale import draw
from benchmarks.runs_compared import Judge

CONFIG = """
import runpy
def get_config():
    config = runpy.run_path({quickstart!r})["get_config"]()
    config.data.train = config.data.valid = {text!r}
    config.data.cache_dir = {cache!r}
    config.model.length = 12
    config.model.n_blocks = 1
    return config
"""


@pytest.fixture
def small(tmp_path, monkeypatch) -> pathlib.Path:
    text, config = tmp_path / "text.txt", tmp_path / "small.py"
    text.write_text("the quick brown fox jumps over the lazy dog and the dog sleeps on\n" * 20)
    quickstart = str(pathlib.Path(runs_compared.CONFIG).resolve())
    config.write_text(CONFIG.format(quickstart=quickstart, text=str(text), cache=str(tmp_path / "data")))
    monkeypatch.setattr(runs_compared, "CONFIG", str(config))
    # One run and the two samplers that a bound speaks of: every program costs seconds to compile.
    monkeypatch.setattr(study, "RUNS", {"uniform": ("time_reversal",)})
    monkeypatch.setattr(study, "METHODS", {"uniform": ("exact", "ancestral")})
    monkeypatch.setattr(study, "SAMPLING_STEPS", (2,))
    monkeypatch.setattr(study, "BLOCKS", 2)
    monkeypatch.setattr(study, "TIME_POINTS", 2)
    for field, value in {"model.hidden_size": 16, "model.n_heads": 1, "optim.warmup": 1}.items():
        monkeypatch.setitem(study.SETTINGS, field, value)
    return tmp_path


@pytest.mark.slow
def test_the_study_from_training_to_picture(small, monkeypatch, capsys):
    png, workdir = small / "study.png", small / "runs"
    words = ["study.py", "--seeds=0", "--steps=2", "--samples=2", f"--workdir={workdir}", f"--picture={png}"]
    monkeypatch.setattr(sys, "argv", words)
    study.main()
    printed = capsys.readouterr().out
    (row,) = [json.loads(line) for line in (workdir / "study.jsonl").read_text().splitlines()]
    assert row["samples"].keys() == row["bounds_of_samples"].keys() == {"exact", "ancestral"}
    assert all(0 < bound < 20 for bound in (*row["bounds"].values(), *row["bounds_of_samples"].values()))
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len([line for line in lines if line.startswith("| uniform | time reversal |")]) == 1 + 2
    assert lines[-1].startswith("| real text |")
    assert png.read_bytes().startswith(b"\x89PNG")

    # What has its line is not done again: with no way to train, the same comes out.
    monkeypatch.setattr(study, "train", None)
    study.main()
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert again == lines


def test_tables_have_the_mean_and_error_over_seeds(tmp_path):
    def line(source: str, seed: int, methods: tuple[str, ...], bounds: dict[str, float]) -> dict:
        samples = {
            m: {"16": {"nats": 5.0 + seed, "entropy": 2.5}, "64": {"nats": 4.0, "entropy": 2.5}} for m in methods
        }
        of_samples = {m: 3.0 for m in methods if m in study.PROCESS}
        ids = {"source": source, "loss": "generalized_kl", "seed": seed}
        return {**ids, "bounds": bounds, "bounds_of_samples": of_samples, "samples": samples}

    rows = []
    for seed in (0, 1):
        rows.append(line("mask", seed, study.METHODS["mask"], {"generalized_kl": 2.0 + seed}))
        both = {"generalized_kl": 2.5, "time_reversal": 2.25}
        rows.append(line("uniform", seed, study.METHODS["uniform"], both))
    known = {f"samples of a {n}-gram model": {"nats": 7.0 - n, "entropy": 2.7, "own": 3.0} for n in (2, 3)}
    known["real text"] = {"nats": 1.5, "entropy": 2.75}
    lines = study_report.tables(rows, known).splitlines()
    assert "| mask | generalized KL | 2 | 2.500 ± 0.500 | the same | 3.000 ± 0.000 | the same |" in lines
    assert "| uniform | generalized KL | euler | 5.50 ± 0.50 | 2.50 ± 0.00 | 4.00 ± 0.00 | 2.50 ± 0.00 |" in lines
    assert sum(line.startswith("| uniform | generalized KL |") for line in lines) == 1 + 4
    assert "| ancestral − exact | 2 | 0.00 ± 0.00 | 0.00 ± 0.00 | 0.00 ± 0.00 | 0.00 ± 0.00 |" in lines
    assert "| exact − exact in 16 steps | 4 | 0.00 ± 0.00 | 0.00 ± 0.00 | -1.50 ± 0.29 | 0.00 ± 0.00 |" in lines
    assert "| real text | | | 1.50 | 2.75 | 1.50 | 2.75 |" in lines
    assert lines[-1] == "| real text | 1.50 | 2.75 |  |"
    study_report.picture(rows, known, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_stopped_is_not_judged(small, monkeypatch):
    monkeypatch.setattr(runs_compared.cli, "run", lambda command: 0)
    with pytest.raises(SystemExit, match="stopped before its end"):
        runs_compared.train(small / "run", {"optim.n_iters": 2})


def test_the_judge_is_the_law_that_it_draws_from():
    generator = np.random.default_rng(0)
    judge = Judge(generator.integers(0, 5, 300).tolist(), 7, order=3)
    ids = generator.integers(0, 7, 20).tolist()
    laws = np.stack([judge.law(ids[max(0, i - 2) : i]) for i in range(20)])
    np.testing.assert_allclose(laws.sum(1), 1.0, rtol=1e-12)
    assert judge(ids) == pytest.approx(-np.log(laws[np.arange(2, 20), ids[2:]]).mean(), rel=1e-12)
    model = judge.lower(1)
    share = np.bincount(draw(model, 400, 10).ravel(), minlength=7) / 4000
    np.testing.assert_allclose(share, model.law([]), atol=0.03)
