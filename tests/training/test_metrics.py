"""metrics.jsonl has every step once, whatever ends the run; TensorBoard and W&B follow."""

import os
import signal
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar  # noqa: F401  the package's names exist as used

from dfm_jax.evaluation.report import charts
from dfm_jax.evaluation.report import curves as plots
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.training import metrics
from dfm_jax.training.metrics import MetricsWriter


def steps(workdir):
    return [line["step"] for line in metrics.read(workdir / "metrics.jsonl")]


def events(workdir):
    """(step, tag, value), or (step, 'START', None), of every event in the order of the files' names."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log"):
                found.append((event.step, "START", None))
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_lines_hold_exact_numbers_step_first(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": np.float32(0.1), "train/bad_steps": 0, "train/grad_norm": float("inf")})
        writer.write(2, {"train/loss": float("nan")})
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert first == '{"step": 1, "train/loss": 0.10000000149011612, "train/bad_steps": 0, "train/grad_norm": null}'
    assert second == '{"step": 2, "train/loss": null}'
    assert events(tmp_path)[:3] == [
        (1, "START", None),
        (1, "train/loss", pytest.approx(0.1)),
        (1, "train/bad_steps", 0),
    ]


def test_resuming_cuts_what_follows_and_a_torn_line(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 8):
            writer.write(step, {"train/loss": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "train/l')
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    with MetricsWriter(tmp_path, resume_step=4) as writer:
        assert steps(tmp_path) == [1, 2, 3, 4]
        assert writer.logged == {"train/loss"}
        writer.write(5, {"train/loss": 5})
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    assert (5, "START", None) in events(tmp_path)  # TensorBoard forgets steps >= 5 that came before
    MetricsWriter(tmp_path, resume_step=0).close()  # killed before the first checkpoint
    assert steps(tmp_path) == []


@pytest.mark.slow
def test_two_parts_of_a_run_within_a_second_keep_their_event_files(tmp_path):
    script = "import sys; from dfm_jax.training.metrics import MetricsWriter as W; W(sys.argv[1]).write(1, {'a': 1.0})"
    runs = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert events(tmp_path).count((1, "a", 1.0)) == 2


def test_a_killed_process_loses_no_line(tmp_path):
    script = """
        import os, signal, sys
        from dfm_jax.training.metrics import MetricsWriter
        writer = MetricsWriter(sys.argv[1])
        for step in range(1, 51):
            writer.write(step, {"train/loss": step})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    assert steps(tmp_path) == list(range(1, 51))
    assert sum(name == "train/loss" for _, name, _ in events(tmp_path)) == 50


def test_lines_wait_while_the_disk_is_full(tmp_path):
    """A file-size limit stands for the disk: writes are cut short, then refused, as on a full one."""
    script = """
        import resource, signal, sys
        from dfm_jax.training.metrics import MetricsWriter
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        writer = MetricsWriter(sys.argv[1])
        for step in range(1, 61):
            if step == 20:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            if step == 40:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            writer.write(step, {"train/loss": step})
            if step == 39:
                text = open(sys.argv[1] + "/metrics.jsonl").read()
                assert len(text) < 1000 and text.endswith("}\\n"), text
        writer.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path) == list(range(1, 61))
    assert done.stderr.count("metrics.jsonl: not written") == 1 and "tensorboard: not written" in done.stderr


def test_only_one_process_writes(tmp_path):
    with MetricsWriter(tmp_path, enabled=False) as writer:
        writer.write(1, {"a": 1.0})
    assert os.listdir(tmp_path) == []


def test_wandb_missing_is_said_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"^config\.logging\.enable_wandb = True: expected .*pip install wandb"):
        MetricsWriter(tmp_path, wandb={"project": "p"})


def test_wandb_continues_one_run(tmp_path, monkeypatch):
    """Against a stand-in that records calls: the package is optional."""
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finish")

    def init(**settings):
        calls.append(settings)
        return Run()

    module = types.ModuleType("wandb")
    module.init, module.Error = init, RuntimeError
    monkeypatch.setitem(sys.modules, "wandb", module)
    for resume_step in (0, 1):
        with MetricsWriter(tmp_path, resume_step=resume_step, tensorboard=False, wandb={"project": "p"}) as writer:
            writer.write(resume_step + 1, {"a": 1.0})
    first, second = calls[0], calls[3]
    assert first == second and first["project"] == "p" and first["resume"] == "allow" and len(first["id"]) == 8
    assert calls[1:3] == [(1, {"a": 1.0}), "finish"] and calls[4] == (2, {"a": 1.0})

    def fail(**_):
        raise RuntimeError("no API key\nmore")

    module.init = fail
    with pytest.raises(WorldError, match=r"^config\.logging\.enable_wandb = True: .* \(no API key\)$"):
        MetricsWriter(tmp_path, wandb={})


def test_loss_curve(tmp_path):
    assert plots.loss_curve(tmp_path) is None
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": 5.0})
        assert plots.loss_curve(tmp_path) == tmp_path / "loss.png"  # a single point will do
        for step in range(2, 40):
            writer.write(step, {"train/loss": 5.0 / step if step != 7 else float("nan"), "train/learning_rate": 1.0})
        writer.write(20, {"eval/loss": 1.0})
    path = plots.loss_curve(tmp_path)
    assert path is not None and path.read_bytes().startswith(b"\x89PNG\r\n")
    assert len(path.read_bytes()) > 10_000


def test_smoothing_keeps_a_straight_line_and_the_ends():
    line = np.linspace(3.0, 1.0, 500)

    def smooth(values):
        return np.array([value for _, value in charts.smooth(list(enumerate(values)))])

    np.testing.assert_allclose(smooth(line), line, rtol=1e-12)
    noisy = line + np.random.default_rng(0).normal(size=500) * 0.1
    assert np.abs(smooth(noisy) - line)[20:-20].max() < 0.1
