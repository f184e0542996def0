"""Published weights as runs: their own code's logits, probabilities and losses; and what a run does with them."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfm_jax
from dfm_jax import cli, flow
from dfm_jax.checkpoints.published import hub
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.cli import command_line
from dfm_jax.runtime.errors import UsageError, WorldError

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "public_weights"
ALL = ("mdlm", "sedd", "udlm", "duo")
V = 97  # of the fixtures' data
EPS = 1e-3  # their time t' is (1 - kappa) / (1 - EPS), and their losses are per unit of it


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    return {name: dfm_jax.import_weights(FIXTURES / name, folder / name) for name in ALL}


@pytest.fixture(scope="module", params=ALL)
def one(request, runs):
    """(name, run, expected arrays)."""
    with np.load(FIXTURES / request.param / "expected.npz") as arrays:
        return request.param, runs[request.param], dict(arrays)


@pytest.mark.default_cases(1)
def test_the_logits_are_those_of_their_own_code(one):
    name, run, expected = one
    logits = np.asarray(run.logits(expected["x_t"], expected["kappa"]), np.float64)[..., :V]
    if name == "sedd":
        sigma = expected["sigma"].astype(np.float64)[:, None, None]
        score = logits - np.log(np.expm1(sigma)) - np.log(V)
        score[np.arange(V) == expected["x_t"][..., None]] = 0
        np.testing.assert_allclose(score, expected["log_score"][..., :V], atol=2e-5)
    else:
        np.testing.assert_allclose(logits, expected["logits"][..., :V], atol=2e-5)


@pytest.mark.default_cases(2)
def test_the_log_probabilities_are_those_of_their_own_code(one):
    name, run, expected = one
    x_t, kappa = expected["x_t"], expected["kappa"]
    logits = run.logits(x_t, kappa)
    if name in ("udlm", "duo"):  # both put the leave-one-out law in the place of x_1
        np.testing.assert_allclose(jax.nn.log_softmax(logits), expected["log_probs"], atol=2e-5)
        return
    prediction = run.problem.path.prediction(run.problem.source, run.problem.parametrization)
    found = np.asarray(jax.nn.log_softmax(prediction.posterior_logits(logits, x_t, jnp.asarray(kappa))))
    assert np.isneginf(found[..., V][x_t == V]).all()  # the mask is never data
    if name == "mdlm":
        possible = expected["log_probs"] > -1e5  # their -inf is a million
        np.testing.assert_array_equal(possible, np.isfinite(found))
        np.testing.assert_allclose(found[possible], expected["log_probs"][possible], atol=2e-5)
    else:  # the softmax of a log score over the data is the posterior
        score = jax.nn.log_softmax(expected["log_score"][..., :V])
        np.testing.assert_allclose(found[x_t == V][:, :V], score[x_t == V], atol=2e-5)


@pytest.mark.default_cases(2)
def test_the_loss_per_token_is_the_published_one(one):
    name, run, expected = one
    x_1, x_t, kappa = expected["x_1"], expected["x_t"], jnp.asarray(expected["kappa"])
    objective, logits = run.problem.objective, run.logits(x_t, kappa)
    answer = flow.answer_from_logits(logits, objective.query(x_1, x_t, kappa))
    nats = np.asarray(objective(answer, x_1, x_t, kappa), np.float64) * (1 - EPS)
    if name == "sedd":  # the divergence of the total mass of its score, which no bound of ours has
        mass = np.exp(np.asarray(logits, np.float64)[..., :V]).sum(-1) / V
        rate = (1 - EPS) / (1 - expected["kappa"].astype(np.float64))[:, None]
        nats = nats + np.where(x_t == V, rate * (mass - 1 - np.log(mass)), 0)
    theirs = expected["score_entropy" if name == "sedd" else "nll"]
    np.testing.assert_allclose(nats, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_ends_of_time_are_finite(one, t):
    name, run, expected = one
    assert np.isfinite(np.asarray(run.logits(expected["x_t"], t))[..., :V]).all()
    told = run.problem.network_time(jnp.asarray([t]))
    assert float(told[0]) == pytest.approx(
        {0.0: 0.0 if name == "mdlm" else np.log(1000), 1.0: 1.0 - (name != "mdlm")}[t]
    )


def test_the_run_states_what_the_files_tell(runs):
    def fields(name: str) -> tuple:
        config = runs[name].config
        flow_fields = ("flow.source_distribution", "flow.loss_function", "model.parametrization", "model.time_input")
        others = ("model.time_conditioning", "tokenizer.name", "model.length", "model.dropout", "model.n_heads")
        return tuple(config[field] for field in (*flow_fields, *others))

    assert fields("mdlm") == ("mask", "masked_elbo", "leave_one_out", "t", False, "ids:97", 48, 0.1, 4)
    assert fields("sedd") == ("mask", "masked_elbo", "leave_one_out", "sigma", True, "ids:97", 48, 0.1, 4)
    assert fields("udlm") == ("uniform", "time_reversal", "leave_one_out", "sigma", True, "ids:97", 48, 0.1, 4)
    assert fields("duo") == ("uniform", "time_reversal", "leave_one_out", "sigma", True, "ids:97", 48, 0.1, 4)


@pytest.mark.slow
def test_the_rows_are_stated_where_the_tokenizer_has_an_end_of_text(tmp_path):
    for name, packing in {"mdlm": "wrapped", "sedd": "continuous", "udlm": "rows", "duo": "wrapped"}.items():
        run = copy_with_states(name, tmp_path / name, 257 + (name in ("mdlm", "sedd")))
        found = dfm_jax.import_weights(run, tmp_path / f"run-{name}", overrides={"tokenizer.name": "bytes"})
        assert (found.config.data.packing, found.tokenizer.name) == (packing, "bytes")


def copy_with_states(name: str, folder: pathlib.Path, states: int) -> pathlib.Path:
    """A fixture with another number of states, whose new rows are zero."""
    from dfm_jax.checkpoints.safetensors_file import read_safetensors, write_safetensors

    shutil.copytree(FIXTURES / name, folder)
    tensors = read_safetensors(folder / "model.safetensors")
    for tensor, value in tensors.items():
        if value.shape[0] in (97, 98):
            tensors[tensor] = np.zeros((states, *value.shape[1:]), np.float32)
            tensors[tensor][: len(value)] = value
    write_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    config |= {"tokens": states - 1} if name == "sedd" else {"vocab_size": states}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_a_mask_inside_gives_the_same_numbers_under_moved_ids(runs, tmp_path):
    expected = np.load(FIXTURES / "mdlm" / "expected.npz")
    moved = dfm_jax.import_weights(FIXTURES / "mdlm", tmp_path / "moved", mask_id=5)
    assert moved.tokenizer.name == "ids:98:without=5" and moved.problem.source.mask_id == 97
    theirs = np.where(expected["x_t"] == 97, 6, expected["x_t"])
    ours = np.where(theirs > 5, theirs - 1, np.where(theirs == 5, 97, theirs))
    model, time = runs["mdlm"].model, jnp.zeros(4)
    plain = model.logits(model(jnp.asarray(theirs), time))
    logits = moved.logits(ours, 0.5)
    np.testing.assert_allclose(logits[..., :97], np.delete(plain, 5, axis=-1), atol=1e-5)
    assert moved.tokenizer.decode([4, 5, 96]) == "4 6 97"
    np.testing.assert_array_equal(moved.tokenizer.encode_batch(["4 6 97"])[0], [4, 5, 96])
    with pytest.raises(WorldError, match="without the token 5"):
        moved.tokenizer.encode_batch(["4 5 6"])


def test_a_vocabulary_that_is_known_to_have_a_mask_wants_its_id(tmp_path):
    folder = copy_with_states("mdlm", tmp_path / "text8", 98)
    tensors_of(folder, 35)
    with pytest.raises(ValueError, match=r"mask_id = .missing.: expected --mask_id=ID or --config.tokenizer.name"):
        dfm_jax.import_weights(folder, tmp_path / "run")
    assert dfm_jax.import_weights(folder, tmp_path / "run", mask_id=4).tokenizer.name == "ids:35:without=4"


def tensors_of(folder: pathlib.Path, states: int) -> None:
    from dfm_jax.checkpoints.safetensors_file import read_safetensors, write_safetensors

    tensors = read_safetensors(folder / "model.safetensors")
    cut = {name: value[:states] if value.shape[0] == 98 else value for name, value in tensors.items()}
    write_safetensors(folder / "model.safetensors", cut)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": states}))


@pytest.mark.slow
def test_duos_padding_token_is_part_of_its_vocabulary(tmp_path):
    folder = copy_with_states("duo", tmp_path / "duo", 259)
    run = dfm_jax.import_weights(folder, tmp_path / "run", overrides={"tokenizer.name": "bytes"})
    assert (run.tokenizer.name, run.problem.source.num_states) == ("bytes:size=259", 259)
    assert run.tokenizer.decode([97, 257, 98, 258]) == "a[PAD]b[PAD]" and run.tokenizer.decode_bytes([97, 258]) == b"a"
    with pytest.raises(ValueError, match="bytes: expected a tokenizer of at most 97 tokens"):
        dfm_jax.import_weights(FIXTURES / "duo", tmp_path / "other", overrides={"tokenizer.name": "bytes"})


WRONG = {
    "no such folder": ("nowhere/at/all", {}, WorldError, "nowhere/at/all: expected a file that exists"),
    "another source": ("{duo}", {"overrides": {"flow.source_distribution": "mask"}}, ValueError,
                       "flow.source_distribution = mask: expected uniform, as the file says"),
    "another width": ("{duo}", {"overrides": {"model.hidden_size": 192}}, ValueError, "hidden_size = 192: expected 64"),
    "an unknown layout": ("{duo}", {"layout": "d3pm"}, WorldError, "layout = d3pm: expected one of reference"),
    "a mask for noise without": ("{duo}", {"mask_id": 3}, WorldError, "mask_id = 3: expected none"),
    "a mask for a file": ("{pth}", {"mask_id": 3}, ValueError, "mask_id = 3: expected with a published folder"),
}  # fmt: skip


@pytest.mark.parametrize("origin, options, error, part", WRONG.values(), ids=WRONG)
def test_a_wrong_import_is_one_line_and_leaves_nothing(origin, options, error, part, tmp_path):
    origin = origin.format(duo=FIXTURES / "duo", pth=FIXTURES.parent / "checkpoint_mask.pth")
    with pytest.raises(error) as caught:
        dfm_jax.import_weights(origin, tmp_path / "run", **options)
    assert part in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_command_line_imports_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FIXTURES / "duo", "weights")
    config = json.loads(pathlib.Path("weights/config.json").read_text())
    del config["model_type"], config["architectures"]
    pathlib.Path("weights/config.json").write_text(json.dumps(config))
    words = ["main.py", "--mode=import", "--from=weights"]
    with pytest.raises(WorldError, match=r"model_type = .missing.: expected reference, sedd, mdlm, udlm, duo, or"):
        cli.run(command_line.parse(words))
    assert cli.run(command_line.parse([*words, "--layout=duo"])) == 0
    assert dfm_jax.load("runs/weights").config.flow.loss_function == "time_reversal"


def test_a_name_on_the_hub_is_asked_for_once_and_then_taken_from_the_cache(tmp_path, monkeypatch):
    asked = []

    def download(name, *, allow_patterns, local_files_only=False):
        asked.append((name, local_files_only))
        if not local_files_only:
            raise huggingface_hub.errors.OfflineModeIsEnabled("offline")
        return str(FIXTURES / "duo")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    run = dfm_jax.import_weights("someone/duo-tiny", tmp_path / "run")
    assert run.config.flow.source_distribution == "uniform"
    assert asked == [("someone/duo-tiny", False), ("someone/duo-tiny", True)]


def test_offline_the_librarys_own_cache_is_read(tmp_path, monkeypatch):
    place = tmp_path / "models--someone--udlm"
    shutil.copytree(FIXTURES / "udlm", place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch("someone/udlm") == place / "snapshots" / ("a" * 40)
    with pytest.raises(WorldError, match=r"other: the hub cannot be asked .*no such repository"):
        hub.fetch("someone/other")


@pytest.mark.parametrize("fault, error, part", [
    ("missing", UsageError, "no such repository on the hub (or it is private)"),
    ("offline", WorldError, "the hub cannot be asked (OfflineModeIsEnabled)"),
    ("network", WorldError, "the hub cannot be asked (ConnectionError)"),
])  # fmt: skip
def test_what_the_hub_does_not_give_is_one_line(fault, error, part, monkeypatch):
    kind = huggingface_hub.errors.RepositoryNotFoundError
    faults = {
        "missing": lambda: kind.__new__(kind),  # its arguments are those of the library's own HTTP client
        "offline": lambda: huggingface_hub.errors.OfflineModeIsEnabled("offline"),
        "network": lambda: ConnectionError("no route"),
    }

    def download(*_, **__):
        raise faults[fault]()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(error) as caught:
        hub.fetch("someone/private")
    assert part in str(caught.value) and "\n" not in str(caught.value)


TINY = {
    "training.batch_size": 8,
    "training.snapshot": 10,
    "training.eval_freq": 0,
    "training.perplexity_freq": 0,
    "optim.n_iters": 50,
    "optim.warmup": 5,
    "optim.lr": 3e-3,
    "logging.log_freq": 1,
    "eval.elbo": False,
    "eval.perplexity": False,
    "sampling.steps": 8,
}


def text_of_ids(folder: pathlib.Path) -> dict[str, Any]:
    """A text in which each id follows from the one before, as fields of a config."""
    ids = (np.arange(48 * 256) * 7) % 97
    for name in ("train", "valid"):
        (folder / f"{name}.txt").write_text(" ".join(map(str, ids)))
    return {
        "data.train": str(folder / "train.txt"),
        "data.valid": str(folder / "valid.txt"),
        "data.cache_dir": str(folder / "data"),
        "eval.corpora": (str(folder / "valid.txt"),),
    }


def losses(workdir: pathlib.Path) -> dict[int, float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_an_imported_run_is_fine_tuned_evaluated_and_sampled(name, tmp_path):
    workdir, data = tmp_path / "run", text_of_ids(tmp_path)
    run = dfm_jax.import_weights(FIXTURES / name, workdir)
    blocks = ((np.arange(48 * 4) * 7) % 97).reshape(4, 48)
    before = {bound: result.nats_per_token for bound, result in run.likelihood(blocks, time_points=16).items()}
    assert all(map(np.isfinite, before.values()))
    run = dfm_jax.train(run.config, workdir, overrides=TINY | data)
    history = losses(workdir)
    assert run.step == 50 and len(history) == 50
    assert all(np.isfinite(list(history.values())))
    after = {bound: result.nats_per_token for bound, result in run.likelihood(blocks, time_points=16).items()}
    assert all(after[bound] < before[bound] - 0.1 for bound in before)
    assert run.sample_tokens(2, steps=8).max() < V
    report = dfm_jax.evaluate(run, overrides={"eval.elbo": True, "eval.time_points": 8, "eval.batch_size": 64})
    assert not report.missing
    file = dfm_jax.export(run, tmp_path / "out.safetensors")
    again = dfm_jax.import_weights(file, tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again.model, run.model)


@pytest.mark.slow
def test_fine_tuning_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path):
    data = text_of_ids(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for workdir in (whole, killed):
        dfm_jax.import_weights(FIXTURES / "sedd", workdir)
    dfm_jax.prepare(dfm_jax.load(whole).config, overrides=data)

    def command(workdir: pathlib.Path) -> list[str]:
        fields = {**TINY, **data, "eval.corpora": data["eval.corpora"][0]}
        words = [sys.executable, "-m", "dfm_jax", "--mode=train", f"--workdir={workdir}"]
        return [*words, *(f"--config.{field}={value}" for field, value in fields.items())]

    root = pathlib.Path(dfm_jax.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run(command(whole), env=environment, check=True, capture_output=True)
    process = subprocess.Popen(command(killed), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while (Checkpoints(killed / "checkpoints").latest_step() or 0) < 20:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (Checkpoints(killed / "checkpoints").latest_step() or 0) < 50
    subprocess.run(command(killed), env=environment, check=True, capture_output=True)
    models = [dfm_jax.load(workdir, step=50).model for workdir in (whole, killed)]
    jax.tree.map(np.testing.assert_array_equal, *models)
