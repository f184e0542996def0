"""`--mode=sample` that is killed: what has its name is whole, and the same command works again."""

import json
import pathlib
import signal

import pytest

import runs

pytestmark = pytest.mark.slow

SAMPLES = 24


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    overrides = runs.TINY | {"optim.n_iters": 3, "optim.warmup": 1, "training.eval_freq": 0}
    runs.finish(runs.Run(runs.command(folder / "run", folder / "data", overrides)))
    return folder


def sampling(folder: pathlib.Path) -> list[str]:
    words = runs.command(folder / "run", folder / "data", runs.TINY, "--mode=sample")
    return [*words, "--config.sampling.batch_size=2", f"--config.sampling.num={SAMPLES}", "--config.sampling.steps=64"]


def check_whole(stem: pathlib.Path) -> None:
    lines = [json.loads(line) for line in stem.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["index"] for line in lines] == list(range(SAMPLES))
    assert stem.with_suffix(".txt").read_text(encoding="utf-8").count("=== ") == SAMPLES
    assert stem.with_suffix(".html").read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_a_killed_call_leaves_nothing_half_written_and_the_same_one_works_again(trained):
    samples = trained / "run" / "samples"
    before = {path.name: path.read_bytes() for path in samples.glob("*")} if samples.exists() else {}
    run = runs.Run(sampling(trained))
    assert run.wait_until(lambda: "samples: 4 of" in run.told())
    run.kill_all(signal.SIGKILL)
    left = {path.name for path in samples.glob("*")} - before.keys()
    assert left and all(name.endswith(".part") for name in left)
    made = next(samples.glob("*.jsonl.part")).read_text(encoding="utf-8").splitlines()
    assert len(made) >= 4 and json.loads(made[0])["index"] == 0  # hours of work may be in there

    told = runs.finish(runs.Run(sampling(trained)))
    assert f"{SAMPLES} samples: " in told
    (stem,) = (path.with_suffix("") for path in samples.glob("*.jsonl") if path.name not in before)
    check_whole(stem)
    assert {path.name for path in samples.glob("*.part")} == left  # not touched
    assert all((samples / name).read_bytes() == content for name, content in before.items())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_finished_run_is_started_again_on_a_pipe_that_knows_few_characters(trained, monkeypatch, encoding):
    (trained / "run" / "eval").mkdir(exist_ok=True)
    (trained / "run" / "eval" / "step_3.json").write_text("{}")
    (trained / "run" / "eval" / "report.md").write_text("| loss | 2.61 ± 0.02 | 한국어\n", encoding="utf-8")
    console = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name, value in console.items():
        monkeypatch.setenv(name, value)
    overrides = runs.TINY | {"optim.n_iters": 3, "optim.warmup": 1, "training.eval_freq": 0}
    run = runs.Run(runs.command(trained / "run", trained / "data", overrides))
    status = run.wait()
    run._told.seek(0)
    told = run._told.buffer.read()
    assert status == 0, told
    shown = {"ascii": b"2.61 +- 0.02 | ???", "latin-1": b"2.61 \xb1 0.02 | ???"}[encoding]
    assert shown in told and b"next: python " in told
