"""A whole evaluation of a tiny model: every figure in its file, what is missing named, and the report readable."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from configs import published
from dfm_jax.data import get_tokenizer, open_stream, prepare
from dfm_jax.evaluation import evaluate
from dfm_jax.evaluation.evaluate import Evaluator
from dfm_jax.evaluation.judge.gpt2 import GPT2, GPT2Config
from dfm_jax.evaluation.report import markdown as report
from dfm_jax.evaluation.report import pictures
from dfm_jax.evaluation.settings import EvaluationSettings
from dfm_jax.experiment.problem import get_problem
from dfm_jax.models.transformer import Transformer, TransformerConfig
from dfm_jax.runtime.errors import WorldError

BYTES = get_tokenizer("bytes")
TEXT = "".join(f"line {i}: the quick brown fox jumps over the lazy dog {i * i}\n" for i in range(40))


@functools.cache
def make_model() -> Transformer:
    return jax.jit(lambda: Transformer(TransformerConfig(258, 16, 8, 32, n_blocks=1, n_heads=2), rngs=nnx.Rngs(0)))()


@pytest.fixture
def evaluator(tmp_path, monkeypatch):
    judge = GPT2(GPT2Config(vocab_size=257, n_positions=32, n_embd=8, n_layer=1, n_head=1), rngs=nnx.Rngs(0))
    monkeypatch.setattr(evaluate, "get_tokenizer", lambda name: BYTES)
    monkeypatch.setattr(evaluate, "load_judge", lambda name: judge)
    (tmp_path / "text.txt").write_text(TEXT)

    def open_corpus(name: str):
        if name == "far-away":
            raise WorldError("far-away: no network")
        return open_stream(prepare(str(tmp_path / "text.txt"), "valid", BYTES, tmp_path / "cache"), "bytes")

    config = published.get_config()
    config.flow.source_distribution, config.model.length = "mask", 32
    config.flow.sampling_steps, config.eval.time_points, config.eval.num_samples = 4, 4, 5
    config.eval.corpora, config.eval.sample_batch_size, config.eval.perplexity_batch_size = ("near", "far-away"), 2, 2
    config.sampling.num = 3
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    notes: list[str] = []
    return Evaluator(
        settings=EvaluationSettings.from_config(config, BYTES.vocab_size),
        problem=get_problem(config, BYTES.vocab_size),
        tokenizer=BYTES,
        mesh=mesh,
        workdir=tmp_path / "run",
        open_corpus=open_corpus,
        note=notes.append,
    )


def test_a_whole_evaluation(evaluator):
    evaluator.evaluate(make_model(), 7, elbo=True, perplexity=True)
    folder = evaluator.workdir
    given = json.loads((folder / "eval" / "step_7.json").read_text())
    assert given["step"] == 7
    entry = given["likelihood"]["near"]
    blocks = evaluator.open_corpus("near").num_tokens // 32
    assert entry["blocks"] == blocks and entry["time_points"] == 4 and entry["eps"] == 1e-3
    # A zero head is uniform over 257 bytes (the mask suppressed): log 257 per token, for the masked ELBO and any order.
    assert entry["bounds"]["masked_count"]["nats_per_token"] == pytest.approx(np.log(257), rel=1e-5)
    assert abs(entry["bounds"]["masked_elbo"]["nats_per_token"] - np.log(257)) < 4 * entry["stderr"]
    assert entry["bits_per_byte"] == pytest.approx(entry["nats_per_token"] / np.log(2))
    generation = given["generation"]
    assert generation["samples"] == 5 and generation["real_text"]["samples"] == 5
    assert generation["entropy_nats"] == pytest.approx(generation["entropy_bits"] * np.log(2))
    assert 100 < generation["ppl_token_mean"] < generation["ppl_mean_of_exp"] < 2000
    assert set(generation["distinct"]) == {"1", "2", "3"}
    spent = generation["evaluations"]
    assert 1 <= spent["evaluations"] == spent["sequential"] <= generation["settings"]["steps"]
    assert f"{spent['evaluations']:.1f} evaluations a text" in (evaluator.workdir / "eval" / "report.md").read_text()
    assert given["missing"] == ["likelihood of far-away: far-away: no network"]
    provenance = given["provenance"]
    assert provenance["corpus fingerprints"]["near"] and provenance["config"]["model"]["length"] == 32
    text = (folder / "eval" / "report.md").read_text()
    for part in (
        "| source | loss",
        "## Likelihood",
        "masked ELBO",
        "real text",
        "far-away",
        "## Provenance",
        "random orders",
    ):
        assert part in text, part
    assert (folder / "eval" / "elbo_near_step_7.png").stat().st_size > 10_000
    assert len((folder / "samples" / "step_7.jsonl").read_text().splitlines()) == 5


def test_what_the_trainer_calls(evaluator):
    figures = evaluator.loss(make_model(), evaluator.open_corpus("near"))
    assert figures == evaluator.loss(make_model(), evaluator.open_corpus("near"))
    assert set(figures) == {"eval/loss", "eval/loss_stderr", "eval/perplexity"}
    metrics = evaluator.samples(make_model(), 3)
    assert set(metrics) == {"eval/ppl_mean_of_exp", "eval/ppl_token_mean", "eval/entropy_bits", "eval/repetition"}
    assert len((evaluator.workdir / "samples" / "step_3.jsonl").read_text().splitlines()) == 3


def test_the_judge_is_read_once(evaluator, monkeypatch):
    read = evaluate.load_judge
    names = []
    monkeypatch.setattr(evaluate, "load_judge", lambda name: names.append(name) or read(name))
    for step in (3, 4):
        evaluator.samples(make_model(), step)
    assert names == ["gpt2-large"]


def test_without_a_judge_the_rest_runs(evaluator, monkeypatch):
    def missing(name):
        raise WorldError("config.eval.judge=gpt2-large: get it with hf download")

    monkeypatch.setattr(evaluate, "load_judge", missing)
    found = evaluator.evaluate(make_model(), 7, elbo=False, perplexity=True)
    assert found.generation["ppl_mean_of_exp"] is None and found.generation["entropy_bits"] > 0
    assert any("hf download" in line for line in found.missing)
    assert "hf download" in (evaluator.workdir / "eval" / "report.md").read_text()
    with pytest.raises(WorldError, match="hf download"):
        evaluator.frontier(make_model(), 7)


def test_a_run_that_wants_no_judge_misses_none(evaluator):
    wants_none = dataclasses.replace(evaluator, settings=dataclasses.replace(evaluator.settings, judge=""))
    found = wants_none.evaluate(make_model(), 7, elbo=False, perplexity=True)
    assert found.missing == () and found.generation["ppl_mean_of_exp"] is None
    text = (evaluator.workdir / "eval" / "report.md").read_text()
    assert "Missing" not in text and "Judge: none, config.eval.judge is empty." in text


@pytest.mark.slow
def test_frontier(evaluator):
    points = evaluator.frontier(make_model(), 7, temperatures=(0.5, 1.0), steps=(2,), num=2)
    assert [(p["steps"], p["temperature"]) for p in points] == [(2, 0.5), (2, 1.0)]
    assert all(1 <= p["evaluations"] <= 2 and p["head_rows"] >= 1 for p in points)
    assert (evaluator.workdir / "eval" / "frontier_step_7.png").stat().st_size > 10_000


def test_a_picture_of_several_samplers_at_equal_cost(tmp_path):
    points = [
        {"method": "exact", "corrector": corrector, "steps": steps, "temperature": temperature,
         "evaluations": 2.0 * steps, "ppl_token_mean": 30.0 / steps, "entropy_nats": 2.0 + temperature}
        for corrector in ("", "gibbs:sites=1")
        for steps in (4, 8)
        for temperature in (0.9, 1.0)
    ]  # fmt: skip
    drawn = {(sampler, value): len(own) for (sampler, value), own, _ in pictures._lines(points, "steps", "temperature")}
    both = ("exact, ", "exact + gibbs:sites=1, ")
    assert drawn == {(sampler, steps): 2 for sampler in both for steps in (4, 8)}
    picture = pictures.frontier(tmp_path / "frontier.png", points, "two", {"entropy_nats": 2.0, "ppl_token_mean": 9.0})
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_runs_are_compared_side_by_side(evaluator, tmp_path):
    with pytest.raises(WorldError, match="--mode=eval"):
        report.newest_report(tmp_path)
    first = evaluator.evaluate(make_model(), 7, elbo=True, perplexity=False)
    newest = report.newest_report(evaluator.workdir)
    assert newest.likelihood == json.loads(json.dumps(first.likelihood))
    lines = report.compare([newest, newest]).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert "near: generalized KL" in lines[0] and lines[2] == lines[3]
    assert "±" in lines[2] and "—" in lines[2]
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "step_mine.json").write_text("{}")  # none of ours
    wrong = {"run": "x", "step": 1, "likelihood": 3, "generation": {}, "missing": []}
    for text in ("{}", "[]", json.dumps(wrong)):
        (tmp_path / "eval" / "step_1.json").write_text(text)
        with pytest.raises(WorldError, match="expected an evaluation"):
            report.newest_report(tmp_path)
