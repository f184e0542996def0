"""Runs on records and on mixtures: begun, continued, refused, sampled."""

import json
import shutil

import jax
import numpy as np
import pytest

import dfm_jax
from dfm_jax.experiment.streams import trains_on_records
from dfm_jax.runtime.errors import WorldError

RECORDS = ":prompt=q:response=a"
TINY = {
    "tokenizer.name": "bytes",
    "training.batch_size": 4,
    "training.snapshot": 3,
    "training.eval_freq": 3,
    "optim.n_iters": 6,
    "optim.warmup": 1,
    "model.hidden_size": 32,
    "model.cond_dim": 16,
    "model.n_blocks": 1,
    "model.n_heads": 2,
    "model.length": 16,
    "eval.elbo": False,
    "eval.perplexity": False,
    "eval.num_samples": 4,
    "eval.sample_batch_size": 4,
    "flow.sampling_steps": 8,
    "logging.log_freq": 1,
    "checkpoint.keep_last": 9,
}


@pytest.fixture
def corpora(tmp_path):
    """Text, records to train on, records to validate on."""
    (tmp_path / "a.txt").write_text("some text " * 60)
    for name, count in (("chat", 40), ("valid", 7)):
        rows = [{"q": f"{i}=", "a": f"{i % 7}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "data.train": f"{tmp_path}/a.txt=0.5,{tmp_path}/chat.jsonl{RECORDS}=1.5",
        "data.valid": f"{tmp_path}/valid.jsonl{RECORDS}",
        "data.cache_dir": f"{tmp_path}/cache",
        "eval.corpora": (f"{tmp_path}/valid.jsonl{RECORDS}",),
    }


def train(folder, corpora, **changes):
    return dfm_jax.train("quickstart", folder, overrides=TINY | corpora | changes)


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k and "time" not in k} for line in lines]


def leaves(run):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(run.model)]


def at_step_3(run, folder):
    """A copy of a run's folder as it was when step 3 was saved."""
    shutil.copytree(run, folder)
    for checkpoint in (folder / "checkpoints").glob("6*"):
        shutil.rmtree(checkpoint)
    return folder


@pytest.mark.slow
def test_a_run_on_a_mixture_with_records_continues_exactly_and_changes_its_weights_by_one_field(
    tmp_path, corpora, capsys
):
    whole = train(tmp_path / "run", corpora)
    assert "75.00% of the blocks from" in capsys.readouterr().err
    again = train(at_step_3(tmp_path / "run", tmp_path / "again"), corpora)
    for ours, theirs in zip(leaves(whole), leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "again")
    epochs = [line for line in metrics(tmp_path / "run") if "train/epochs/1" in line][-1]
    assert epochs["train/epochs/1"] == pytest.approx(18 / 40) and epochs["step"] == 6

    # Other weights are another run, unless the field says from which step on.
    folder = at_step_3(tmp_path / "run", tmp_path / "other")
    reversed_weights = {"data.train": corpora["data.train"].replace("=0.5", "=1.5").replace("=1.5,", "=5,")}
    with pytest.raises(WorldError, match=r"weights of a mixture change by data.reweight alone"):
        train(folder, corpora | reversed_weights)
    with pytest.raises(
        WorldError, match=r"data.reweight: .* \(may change by entries for steps that are not done yet\)"
    ):
        train(folder, corpora, **{"data.reweight": ("2:1/1",)})
    changed = train(folder, corpora, **{"data.reweight": ("3:1/1",)})
    assert "data.reweight: [] -> ['3:1/1']" in capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text())["data"]["reweight"] == ["3:1/1"]
    assert any((a != b).any() for a, b in zip(leaves(whole), leaves(changed), strict=True))
    assert metrics(folder)[-2]["train/epochs/1"] == pytest.approx((9 + 6) / 40)
    # What was done with other weights stays done.
    with pytest.raises(WorldError, match=r"data.reweight"):
        train(folder, corpora)

    # An answer ends by itself, and the samples of the report answer the prompts of the validation records.
    assert trains_on_records(whole.config)
    for text in whole.sample(8, prompt="12=", steps=8):
        assert text.startswith("12=") and "<|endoftext|>" not in text
    report = dfm_jax.evaluate(whole, overrides={"eval.perplexity": True, "eval.elbo": True, "eval.time_points": 2})
    assert {name: entry["tokens"] for name, entry in report.likelihood.items()} == {corpora["data.valid"]: 14}
    samples = (tmp_path / "run" / "samples").glob("step_6*.jsonl")
    texts = [json.loads(line)["text"] for file in samples for line in file.read_text().splitlines()]
    assert texts and all(text.startswith(f"{i}=") and "<|endoftext|>" not in text for i, text in enumerate(texts))


@pytest.mark.slow
@pytest.mark.parametrize(
    "flow",
    [
        {"flow.source_distribution": "mask", "flow.loss_function": "masked_elbo"},
        {"flow.source_distribution": "mask", "flow.loss_function": "masked_count", "model.time_conditioning": False},
        {"flow.source_distribution": "uniform", "flow.loss_function": "generalized_kl"},
        {"flow.source_distribution": "unigram", "flow.loss_function": "generalized_kl"},
    ],
)
def test_records_train_with_every_source_and_a_conditional_coupling(tmp_path, corpora, flow):
    alone = {"data.train": f"{tmp_path}/chat.jsonl{RECORDS}", "flow.coupling": "conditional", "optim.n_iters": 3}
    run = train(tmp_path / "run", corpora, **alone, **flow)
    assert run.step == 3
    assert all(np.isfinite(line.get("train/loss", 0.0)) for line in metrics(tmp_path / "run"))


def test_one_corpus_is_evaluated_at_a_time(tmp_path, corpora):
    mixture = {"data.valid": corpora["data.train"]}
    with pytest.raises(Exception, match=r"config.data.valid = .*: expected one corpus; data.train alone mixes several"):
        dfm_jax.prepare("quickstart", overrides=TINY | corpora | mixture)
    folders = dfm_jax.prepare("quickstart", overrides=TINY | corpora)
    assert list(folders) == [f"{tmp_path}/a.txt", f"{tmp_path}/chat.jsonl{RECORDS}", "data.valid"]


def test_weights_are_checked_before_any_text_is_read(tmp_path, corpora):
    with pytest.raises(ValueError, match=r"data.train = .*: the weight of .*chat.jsonl.* = -1: expected a number"):
        train(tmp_path / "run", corpora | {"data.train": corpora["data.train"].replace("=1.5", "=-1")})
    with pytest.raises(ValueError, match=r"data.reweight = 5:1: 1 weights: expected 2, one a corpus of data.train"):
        train(tmp_path / "run", corpora, **{"data.reweight": ("5:1",)})
    with pytest.raises(ValueError, match=r"data.reweight = .*: expected STEP:WEIGHT/WEIGHT..., as 2000:0.5/0.5"):
        train(tmp_path / "run", corpora, **{"data.reweight": ("x",)})
    with pytest.raises(ValueError, match=r"data.valid = \(empty\): expected a text to validate on: nothing is held"):
        train(tmp_path / "run", corpora | {"data.valid": ""})
    with pytest.raises(ValueError, match=r"data.cache_dir = s3://b/c: expected a folder on a file system"):
        train(tmp_path / "run", corpora | {"data.cache_dir": "s3://b/c"})
    assert not (tmp_path / "run").exists()


def test_a_run_is_no_object_of_a_store(tmp_path, corpora):
    with pytest.raises(WorldError, match=r"expected a folder on a file system; stores are for text and shards"):
        train("s3://bucket/run", corpora)
