"""The sizes of `configs/small.py`: from the text and the device, within what can be set."""

import json
import pathlib
import sys

import pytest

from dfm_jax import config as configs
from dfm_jax.__main__ import main
from dfm_jax.cli.command_line import parse
from dfm_jax.experiment import conditions, sizing
from dfm_jax.experiment.sizing import Device, Text
from dfm_jax.run.begin import as_begun
from dfm_jax.runtime.errors import UsageError

LAPTOP = Device("cpu", "cpu", 1, 2)
H100 = Device("gpu", "NVIDIA H100 80GB HBM3", 1, 16)
OTHER = Device("gpu", "a card of tomorrow", 4, 16)


def small(*words: str) -> configs.Config:
    return parse(["main.py", "--config=configs/small.py", "--config.data.train=text.txt", *words]).config


@pytest.mark.parametrize("device", [LAPTOP, H100, OTHER], ids=str)
@pytest.mark.parametrize("tokens", [600, 30_000, 1_000_000, 20_000_000, 10**10])
def test_any_text_on_any_device_gives_a_run(tokens, device):
    given = small()
    config, reasons = sizing.settle(given, Text(tokens, tokens // 20), device)
    conditions.check(config, "train")
    assert config.training.auto == () and len(reasons) == 7
    for name in given.training.auto:
        assert any(f"{name} = " in line for line in reasons), name
    assert config.model.length <= tokens // 20 and config.training.batch_size % device.count == 0
    seen = config.optim.n_iters * config.training.batch_size * config.model.length
    assert seen <= 1.3 * sizing.EPOCHS * tokens + 20 * config.training.batch_size * config.model.length
    # So much of the budget that the device is used, and not much more than all of it.
    operations = 6 * 12 * config.model.n_blocks * config.model.hidden_size**2 * seen
    assert operations < 1.2 * device.speed * 60 * (5 if device is LAPTOP else 60)


def test_more_text_and_a_faster_device_give_no_smaller_network():
    def parameters(tokens, device):
        config, _ = sizing.settle(small(), Text(tokens, tokens // 20), device)
        return config.model.n_blocks * config.model.hidden_size**2

    for device in (LAPTOP, H100):
        sizes = [parameters(tokens, device) for tokens in (10**4, 10**5, 10**6, 10**7, 10**8)]
        assert sizes == sorted(sizes)
    assert parameters(10**8, LAPTOP) < parameters(10**8, H100)


@pytest.mark.parametrize(
    "given",
    [
        {"model.hidden_size": 96},
        {"model.n_heads": 6},
        {"model.n_blocks": 5, "model.n_heads": 3},
        {"optim.n_iters": 40, "model.length": 16},
        {"training.batch_size": 3, "optim.lr": 0.01},
        {"training.grad_accum": 3},
    ],
    ids=str,
)
def test_what_is_set_stays_and_the_rest_fits_it(given):
    settings = small(*(f"--config.{name}={value}" for name, value in given.items()))
    assert not set(given) & set(settings.training.auto)
    config, _ = sizing.settle(settings, Text(10**6, 10**5), LAPTOP)
    assert {name: config[name] for name in given} == given
    conditions.check(config, "train")


def test_auto_by_hand_and_back_again():
    config = parse(["main.py", "--config=configs/quickstart.py", "--config.optim.n_iters=auto"]).config
    assert config.training.auto == ("optim.n_iters",)
    assert configs.replace(config, {"optim.lr": 1e-3}).training.auto == ("optim.n_iters",)
    assert configs.replace(config, {"optim.n_iters": 10}).training.auto == ()
    with pytest.raises(UsageError, match=r"config.data.num_workers = auto: expected"):
        parse(["main.py", "--config=configs/quickstart.py", "--config.data.num_workers=auto"])
    with pytest.raises(UsageError, match=r"config.training.auto = .*expected names of fields that may be auto"):
        configs.replace(config, {"training.auto": ("data.train",)})


@pytest.mark.parametrize("mode", ["compile", "benchmark", "import"])
def test_modes_without_a_text_say_so(mode):
    with pytest.raises(UsageError, match=rf"^config.training.batch_size = auto: expected a value: --mode={mode}"):
        conditions.check(small(), mode)


@pytest.mark.slow
def test_it_is_found_once_and_written_into_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"line {i} of a text about {i * i} things, {'and more ' * (i % 5)}" for i in range(3000)]
    pathlib.Path("text.txt").write_text("\n\n".join(words))
    command = ["main.py", "--config=small", "--config.data.train=text.txt", "--workdir=run", "--config.optim.n_iters=6"]
    command += ["--config.model.hidden_size=16", "--config.model.length=16", "--config.eval.time_points=1"]
    command += ["--config.flow.sampling_steps=4", "--config.eval.num_samples=2", "--config.training.batch_size=4"]
    monkeypatch.setattr(
        sys, "argv", [*command, "--config.training.eval_freq=2", "--config.training.compilation_cache="]
    )
    assert main() == 0
    told = capsys.readouterr().err
    assert "from the text and the device" in told and "model.n_blocks = " in told
    for line in (
        "validation: held out of text.txt (5%)",
        "at the end: the likelihood of text.txt (held out), 64 blocks",
    ):
        assert line in told
    saved = json.loads(pathlib.Path("run/config.json").read_text())
    assert saved["training"]["auto"] == [] and saved["model"]["n_heads"] == 1

    # The report has the run's own text and what it costs without a network; the best checkpoint is there.
    (report,) = pathlib.Path("run/eval").glob("step_*.json")
    entry = json.loads(report.read_text())["likelihood"]["text.txt (held out)"]
    assert set(entry["baselines"]) == {"unigram", "bigram", "gzip"}
    best = json.loads(pathlib.Path("run/checkpoints/best.json").read_text())
    assert report.stem == f"step_{best['step']}"
    lines = [json.loads(line) for line in pathlib.Path("run/metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}
    assert list(losses) == [2, 4, 6] and min(losses, key=lambda step: losses[step]) == best["step"]
    assert pathlib.Path("run/index.html").stat().st_size > 5000

    # A run that goes on takes what was found, whatever the rule would find now.
    rule = sizing.find

    def only_in_checks(config, text, device):
        assert text is sizing.NOMINAL[0]
        return rule(config, text, device)

    monkeypatch.setattr(sizing, "find", only_in_checks)
    assert as_begun(small("--config.optim.n_iters=6"), pathlib.Path("run")).model.n_blocks == saved["model"]["n_blocks"]
    assert main() == 0
    assert "is finished: 6 steps, evaluated; there is nothing left to do" in capsys.readouterr().err

    # A best checkpoint that is damaged ends an evaluation in one line; another one can be taken.
    files = (path for path in pathlib.Path("run/checkpoints", str(best["step"])).rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    monkeypatch.setattr(sys, "argv", ["main.py", "--mode=eval", "--workdir=run"])
    assert main() == 1
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("checkpoint ")]
    assert len(told) == 1 and told[0].startswith("error: checkpoint") and "expected an intact" in told[0]
