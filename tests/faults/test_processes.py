"""Two processes of one run: told different things, killed, and given what may differ."""

import pathlib
import signal
import socket

import pytest

import runs
from dfm_jax.training import metrics

pytestmark = pytest.mark.slow

WORDS = "the quick brown fox jumps over the lazy dog, again and again;"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two texts of the same length."""
    folder = tmp_path_factory.mktemp("texts")
    for name, word in (("one", WORDS), ("other", WORDS.upper())):
        (folder / f"{name}.txt").write_text("\n".join(f"{word} {i}" for i in range(2000)))
    return folder


def start(folder: pathlib.Path, texts: pathlib.Path, first: dict, second: dict, **common) -> list[runs.Run]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    text = texts / "one.txt"
    base = runs.TINY | {"data.train": text, "data.valid": text} | common
    flags = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    return [
        runs.Run(
            [*runs.command(folder / "run", folder / "data", base | own), *flags, f"--process_id={i}"],
            devices=2,
        )
        for i, own in enumerate((first, second))
    ]


@pytest.mark.parametrize(
    ("second", "line"),
    [
        ({"optim.lr": 0.5}, "config.optim.lr = 0.5 on process 1: expected 0.01, as on process 0"),
        ({"optim.n_iters": 46}, "config.optim.n_iters = 46 on process 1: expected 45, as on process 0"),
        ({"flow.scheduler_type": "cosine_md4"}, "config.flow.scheduler_type"),
        ({"data.train": "other.txt"}, "config.data.train: fingerprint of the tokens = "),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_another_command_is_one_line_on_every_process(tmp_path, texts, second, line):
    if "data.train" in second:
        second = {"data.train": texts / second["data.train"]}
    for run in start(tmp_path, texts, {}, second):
        told = runs.finish(run, status=2)
        last = told.splitlines()[-1]
        assert last.startswith(f"error: {line}") and "on process 1: expected" in last, told
        assert "Traceback" not in told


def test_paths_and_workers_may_differ(tmp_path, texts):
    second = {"data.num_workers": 2, "data.cache_dir": tmp_path / "own", "data.train": texts / "copy.txt"}
    (texts / "copy.txt").write_bytes((texts / "one.txt").read_bytes())
    common = {"optim.n_iters": 6, "optim.warmup": 2, "training.eval_freq": 6}
    for run in start(tmp_path, texts, {}, second, **common):
        assert "Traceback" not in runs.finish(run)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_ends_within_a_minute_with_our_line_first(tmp_path, texts, victim):
    group = start(tmp_path, texts, {}, {}, **{"optim.n_iters": 100_000, "training.snapshot": 1000})
    assert group[0].wait_until(lambda: len(metrics.read(tmp_path / "run" / "metrics.jsonl")) >= 5)
    group[victim].kill_all(signal.SIGKILL)
    other = group[1 - victim]
    assert other.wait(60) == 1, other.told()
    said = [line for line in other.told().splitlines() if not line.startswith(("step ", "[Gloo]"))]
    line = next(line for line in said if line.startswith(f"error: process {victim} ended; "))
    assert victim == 0 or "heartbeat timeout" not in other.told()
    # With process 0 ends jax's coordination service, whose clients tell it from threads of their own, at any moment.
    theirs = ["Traceback"] if victim == 0 else ["Traceback", "coordination", "Terminating process"]
    foreign = [text for text in said if any(word in text for word in theirs)]
    assert not foreign or said.index(line) < said.index(foreign[0]), said


def test_an_error_of_one_process_ends_both(tmp_path, texts):
    """Process 1 cannot keep its tokens anywhere."""
    (tmp_path / "file").write_text("in the way")
    first, second = start(tmp_path, texts, {}, {"data.cache_dir": tmp_path / "file" / "data"})
    assert "data.cache_dir" in runs.finish(second, status=1).splitlines()[-1]
    assert "another process of the run could not go on" in runs.finish(first, status=1).splitlines()[-1]
