"""The benchmark mode: timing on a clock of our own, tables, what is measured and in which order, and its processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import programs
from configs import quickstart, uniform_gkl
from dfm_jax import benchmarking
from dfm_jax.benchmarking import cases, child, counterparts, driver, results
from dfm_jax.benchmarking.timing import Timing, measure
from dfm_jax.config import freeze, replace, to_json
from dfm_jax.runtime.errors import UsageError


class Clock:
    """Each reading is later by the next of `steps` seconds, alternating with no time at all."""

    def __init__(self, steps):
        self.steps, self.now, self.odd = iter(steps), 0.0, False

    def __call__(self):
        if self.odd:
            self.now += next(self.steps)
        self.odd = not self.odd
        return self.now


def test_the_first_call_is_apart_and_repeats_end():
    timing = measure(lambda: None, least=3, most=9, enough=100, clock=Clock([50.0, 1.0, 2.0, 3.0, *[1.0] * 9]))
    assert timing.first == 50.0 and timing.samples[:3] == (1.0, 2.0, 3.0) and len(timing.samples) == 9
    slow = measure(lambda: None, least=3, most=9, enough=5, clock=Clock([1.0, 3.0, 3.0, 4.0, 1.0]))
    assert slow.samples == (3.0, 3.0, 4.0) and slow.median == 3.0
    assert (slow.calls, slow.host_bound) == (1, False)


class Device:
    """A device that does one call after the other, and a host that takes `queueing` seconds to queue one."""

    def __init__(self, seconds, queueing):
        self.seconds, self.queueing, self.now, self.free, self.calls = seconds, queueing, 0.0, 0.0, 0

    def call(self):
        self.calls += 1
        self.now += self.queueing
        self.free = max(self.free, self.now) + self.seconds
        return self

    def block_until_ready(self):
        self.now = max(self.now, self.free)
        return self

    def clock(self):
        return self.now


def test_queued_calls_take_the_devices_time():
    """Of calls that the host queues faster than the device does them, the host's time shows in the first alone."""
    device = Device(seconds=0.1, queueing=0.02)
    timing = measure(device.call, queued=True, least=4, enough=0.0, clock=device.clock)
    assert timing.calls == 3 and len(timing.samples) == 4
    assert timing.median == pytest.approx(0.1 + 0.02 / 3)
    assert not timing.host_bound
    alone = measure(device.call, queued=False, least=4, enough=0.0, clock=device.clock)
    assert alone.median == pytest.approx(0.12)


def test_a_figure_that_is_the_hosts_says_so():
    device = Device(seconds=0.001, queueing=0.01)
    timing = measure(device.call, queued=True, least=4, enough=0.0, clock=device.clock)
    assert timing.calls == 16 and timing.host_bound
    row = results.from_timing("head", "draws", timing, "s", lambda seconds: seconds, "64 rows")
    assert row.note.startswith("64 rows; the host's time") and row.calls == 16
    assert "| 4 x 16 |" in results.markdown([row], results.machine(), "title", {})


def test_a_rate_has_its_quartiles_in_order():
    row = results.per_second("train", "tokens", 100.0, Timing(9.0, (1.0, 2.0, 4.0)), "tokens/s")
    assert row.median == 50.0 and row.low < row.median < row.high
    assert (row.first, row.samples) == (9.0, 3)


def test_numbers_are_read_easily():
    assert [results.number(x) for x in (0, 0.01234, 3.14159, 123456.7)] == ["0", "0.0123", "3.14", "123,457"]


PUBLISHED = freeze(uniform_gkl.get_config())


def names(only, platform, config=PUBLISHED):
    return [case.name for case in cases.chosen(only, config, platform)]


def test_what_is_measured_on_a_gpu_most_telling_first():
    assert names(None, "gpu") == [
        "train", "sampler", "pytorch", "train:head=pallas", "train:attention=pallas", "train:attention=xla",
        "likelihood", "train:remat=dots", "train:remat=blocks", "loader", "attention", "head", "pytorch_sampler",
        "prepare",
    ]  # fmt: skip
    assert names("train,train:remat", "gpu") == ["train", "train:remat=dots", "train:remat=blocks"]
    config = replace(PUBLISHED, {"model.attention": "xla", "model.remat": "dots"})
    assert {"train:attention=cudnn", "train:remat=none"} < set(names(None, "gpu", config))
    assert "train:attention=xla" not in names(None, "gpu", config)
    # 'auto' is then xla.
    assert "train:attention=xla" not in names(None, "gpu", replace(PUBLISHED, {"training.deterministic": True}))


def test_what_is_measured_on_a_processor():
    """The config's own step; one with a field changed where it is named."""
    assert names(None, "cpu") == [
        "train", "sampler", "pytorch", "likelihood", "loader", "attention", "head", "pytorch_sampler", "prepare",
    ]  # fmt: skip
    assert set(names(None, "cpu")) == set(cases.BENCHMARKS)
    assert names("train,train:remat=dots, loader", "cpu") == ["train", "train:remat=dots", "loader"]
    case = cases.chosen("train:remat=dots", PUBLISHED, "cpu")[0]
    assert case.apply(PUBLISHED).model.remat == "dots"


def test_a_config_for_eight_gpus_fits_one():
    fitted, said = cases.fitted(PUBLISHED, "gpu", 1)
    assert (fitted.training.batch_size, fitted.eval.batch_size) == (64, 64)
    assert said.startswith("training.batch_size = 512: measured with 64") and PUBLISHED.training.batch_size == 512
    assert cases.fitted(PUBLISHED, "gpu", 8)[1] == cases.fitted(PUBLISHED, "cpu", 1)[1] == ""
    in_two_parts = replace(PUBLISHED, {"training.grad_accum": 2})
    assert cases.fitted(in_two_parts, "gpu", 1)[0].training.batch_size == 128


def tiny():
    config = quickstart.get_config()
    config.model.hidden_size, config.model.n_heads, config.model.n_blocks, config.model.length = 16, 2, 1, 16
    config.training.batch_size = config.eval.batch_size = 4
    config.eval.sample_batch_size = config.sampling.batch_size = 2
    config.data.num_workers = 1
    return freeze(config)


def measured(config, only, *, trace=None):
    """(rows by (case, figure), missing reasons by name) of cases measured in this process."""
    told = []
    for case in cases.chosen(only, config, "cpu"):
        request = {
            "case": vars(case), "config": to_json(config), "vocab_size": 257, "trace": trace,
        }  # fmt: skip
        child.measure(request, lambda kind, value: told.append((kind, value)))
    rows = {(row["benchmark"], row["what"]): row for kind, row in told if kind == "row"}
    return rows, {value["name"]: value["reason"] for kind, value in told if kind == "missing"}


@pytest.fixture
def few(monkeypatch):
    """As few repeats as there can be."""
    monkeypatch.setattr("dfm_jax.benchmarking.timing.measure.__kwdefaults__", measure.__kwdefaults__ | {"most": 5})
    monkeypatch.setattr("dfm_jax.benchmarking.operations.TOKENS", {"cpu": 64})
    monkeypatch.setattr("dfm_jax.benchmarking.programs.SAMPLER_STEPS", {"cpu": 2})


@pytest.mark.slow
def test_the_step_and_the_operations(few):
    rows, missing = measured(tiny(), "train,train:remat=dots,attention,head")
    tokens, step = rows["train", "tokens"], rows["train", "step"]
    assert tokens["median"] * step["median"] / 1e3 == pytest.approx(4 * 16, rel=1e-6)
    assert tokens["samples"] == 5 and tokens["first"] > 0
    assert rows["train", "memory, as compiled"]["median"] > 0 and rows["train", "compilation"]["median"] > 0
    assert ("train:remat=dots", "step") in rows
    assert ("attention", "xla forward and backward") in rows
    # What this machine cannot run is not measured, and named.
    assert not any(name == "attention" and what.startswith("cudnn") for name, what in rows)
    assert "expected an NVIDIA GPU" in missing["attention cudnn"] and "interpreted" in missing["head pallas"]
    assert {what for name, what in rows if name == "head"} >= {"dense draws", "blocks with gradients"}


@pytest.mark.slow
def test_the_likelihood_and_the_sampler(few):
    rows, missing = measured(tiny(), "likelihood,sampler")
    assert missing == {}
    assert rows["sampler", "tokens at 2 steps"]["median"] == pytest.approx(
        2 * 16 / (2 * rows["sampler", "step"]["median"] / 1e3), rel=1e-6
    )
    assert ("likelihood", "pass") in rows and ("likelihood", "memory, as compiled") in rows


def test_a_case_that_fails_is_a_line(few, monkeypatch):
    def fails(config, vocab_size):
        yield results.single("loader", "before", 1.0, "s")
        raise MemoryError("RESOURCE_EXHAUSTED: Out of memory while trying\nto allocate | 90 GiB")

    monkeypatch.setitem(cases.BENCHMARKS, "loader", fails)
    rows, missing = measured(tiny(), "loader")
    assert ("loader", "before") in rows
    assert missing["loader"] == "MemoryError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate / 90 GiB"


def test_a_field_that_does_not_go_with_the_config_is_a_line():
    rows, missing = measured(replace(tiny(), {"training.deterministic": True}), "train:attention=cudnn")
    assert rows == {} and missing["train:attention=cudnn"].startswith("config.model.attention = cudnn: expected auto")


def test_an_implementation_that_fails_leaves_the_others(few, monkeypatch):
    from dfm_jax.benchmarking import operations

    attention = operations.attention.attention

    def refuses(*args, implementation, **options):
        if implementation == "xla":
            raise RuntimeError("Pass pipeline failed")
        return attention(*args, implementation="xla", **options)

    monkeypatch.setattr(operations.attention, "attention", refuses)
    monkeypatch.setattr(operations.attention, "why_not", lambda *args, **options: None)
    rows, missing = measured(tiny(), "attention")
    assert missing["attention xla"] == "RuntimeError: Pass pipeline failed"
    assert {what for _, what in rows} == {"cudnn forward", "cudnn forward and backward"}


def test_an_unknown_name_is_one_line(tmp_path):
    for only in ("speed", "train,speed", "", "train:remat=all"):
        with pytest.raises(UsageError, match=f"only = {only}: expected some of train, sampler, pytorch"):
            benchmarking.run(tiny(), tmp_path, only=only)


class Said:
    """Stands for the processes: what each case answers."""

    def __init__(self, monkeypatch, answers, clock=None):
        self.answers, self.asked = answers, []
        monkeypatch.setattr(driver, "run_to_end", self.run)

    def run(self, command, env, told, timeout):
        request = json.loads(pathlib.Path(command[-2]).read_text())
        case = request["case"]
        name = "machine" if case is None else cases.Case(**case).name
        self.asked.append(name)
        status, lines = self.answers[name]
        with open(command[-1], "a") as file:
            file.write(lines)
        if status not in (0, None):
            told.write("a traceback\nCUDA_ERROR_ILLEGAL_ADDRESS\n\n")
            told.flush()
        return status


def line(kind, value):
    return json.dumps({kind: value}) + "\n"


def row(name, what="step"):
    return line("row", vars(results.single(name, what, 1.5, "ms")))


MACHINE = 0, line("machine", results.machine() | {"devices": ["1 x NVIDIA H200", "gpu"]})


def test_every_case_that_ends_badly_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    said = Said(
        monkeypatch,
        {
            "machine": MACHINE,
            "train": (0, row("train") + line("done", 1.0)),
            "train:head=pallas": (-11, row("train:head=pallas", "compilation") + '{"row": {"half'),
            "train:attention=pallas": (None, ""),
            "train:attention=xla": (0, line("missing", {"name": "train:attention=xla", "reason": "no memory"})
                                    + line("done", 1.0)),
            "loader": (0, row("loader") + line("done", 1.0)),
        },
    )  # fmt: skip
    only = "train,train:head=pallas,train:attention=pallas,train:attention=xla,loader"
    assert benchmarking.run(PUBLISHED, tmp_path, only=only) == 0
    assert said.asked == ["machine", *only.split(",")]
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert [r["benchmark"] for r in found["rows"]] == ["train", "train:head=pallas", "loader"]
    reasons = found["left_out"]
    assert reasons["train:head=pallas"] == "its process ended with status -11: CUDA_ERROR_ILLEGAL_ADDRESS"
    assert "the 480 seconds that were given are over" in reasons["train:attention=pallas"]
    assert reasons["train:attention=xla"] == "no memory"
    page = (tmp_path / "benchmark.md").read_text()
    assert page in capsys.readouterr().out and "NVIDIA H200" in page
    assert "Not measured:" in page and "- train:attention=xla: no memory" in page


def test_the_budget_ends_before_the_list_and_the_rest_is_named(tmp_path, monkeypatch):
    said = Said(monkeypatch, {"machine": MACHINE, "sampler": (0, row("sampler") + line("done", 1.0))})
    lefts = iter([100.0, 100.0, 100.0, 3.0, 2.0, 1.0])  # asked once by each process and once before each case
    monkeypatch.setattr(driver.Budget, "left", lambda self: next(lefts))
    benchmarking.run(PUBLISHED, tmp_path, only="sampler,loader,prepare", seconds=120)
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert said.asked == ["machine", "sampler"] and found["budget"] == 120
    missing = found["left_out"]
    assert {"loader", "prepare"} == set(missing)
    assert missing["loader"] == "not begun: the 120 seconds that were given are over"


def test_a_device_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    from dfm_jax.runtime.errors import WorldError

    Said(monkeypatch, {"machine": (1, "")})
    with pytest.raises(WorldError, match="a device that JAX can use; its process ended with status 1: CUDA_ERROR"):
        benchmarking.run(tiny(), tmp_path)
    Said(monkeypatch, {"machine": (0, line("no_device", "JAX_PLATFORMS = cuda: none"))})
    with pytest.raises(WorldError, match="expected a device that JAX can use; JAX_PLATFORMS = cuda: none"):
        benchmarking.run(tiny(), tmp_path)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


STARTS_ANOTHER = """
import subprocess, sys, time
print(subprocess.Popen(["sleep", "100"]).pid, file=open(sys.argv[1], "w"), flush=True)
time.sleep(100)
"""


@pytest.mark.slow
def test_at_its_limit_a_process_ends_with_what_it_started(tmp_path):
    written = tmp_path / "pid"
    command = [sys.executable, "-c", STARTS_ANOTHER, str(written)]
    assert driver.run_to_end(command, dict(os.environ), subprocess.DEVNULL, 5.0) is None
    # The kernel ends a process that was sent SIGKILL a moment later than the call returns.
    until = time.monotonic() + 30
    while alive(int(written.read_text())) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(int(written.read_text()))
    assert driver.run_to_end([sys.executable, "-c", "exit(3)"], dict(os.environ), subprocess.DEVNULL, 60.0) == 3


@pytest.mark.slow
def test_what_is_measured_is_on_disk_at_once_and_sigterm_ends_it(tmp_path):
    """The command itself: a figure's line is there while its process still runs; SIGTERM leaves nothing running."""
    words = [f"--config.model.{field}={n}" for field, n in {"hidden_size": 16, "n_heads": 2, "n_blocks": 1}.items()]
    command = [
        sys.executable, str(programs.ROOT / "main.py"), f"--config={programs.ROOT}/configs/quickstart.py",
        "--mode=benchmark", f"--workdir={tmp_path}", "--only=train,likelihood,sampler", "--seconds=300", *words,
    ]  # fmt: skip
    env = programs.environment(JAX_PLATFORMS="cpu")
    # As a script starts it with `&`: SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    lines = tmp_path / "benchmark.jsonl"
    deadline = time.monotonic() + 240
    while not (lines.exists() and '"compilation"' in lines.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    running = subprocess.run(["pgrep", "-f", str(lines)], capture_output=True, text=True, check=False)
    assert running.stdout == ""
    assert json.loads((tmp_path / "benchmark.json").read_text())["machine"]["devices"][1] == "cpu"


def test_what_cannot_run_here_is_named(monkeypatch):
    find = counterparts.importlib.util.find_spec
    monkeypatch.setattr(counterparts.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    rows, missing = measured(tiny(), "pytorch,pytorch_sampler")
    assert rows == {} and missing["pytorch"].startswith("needs torch: pip install")
    assert missing["pytorch_sampler"].startswith("needs torch")


@pytest.mark.slow
def test_a_torch_without_cuda_is_a_line_on_a_gpu(monkeypatch):
    pytest.importorskip("torch")
    if __import__("torch").cuda.is_available():
        pytest.skip("this torch has a GPU")
    monkeypatch.setattr(counterparts.jax, "default_backend", lambda: "gpu")
    with pytest.raises(counterparts.NotHereError, match=r"torch .*CUDA, finds no GPU: nothing to compare with here"):
        counterparts.check("torch")


def test_the_counterparts_figures_are_read():
    found = {"calls": 5, "seconds": {"ours": [1.0, 1.2, 1.4], "pytorch": [2.4, 2.0, 3.0]}, "failed": {"b": "no"}}
    first, second, ratio, missing = counterparts.rows("pytorch", found, "step", "note")
    assert (first.what, first.median, first.low, first.high) == ("ours, step", 1200.0, 1000.0, 1400.0)
    assert (second.what, second.median, second.calls) == ("pytorch, step", 2400.0, 5)
    assert (ratio.what, ratio.median) == ("ours / pytorch", 0.5)
    assert missing == results.Missing("pytorch b", "no")


@pytest.mark.slow
def test_the_counterparts_run_here():
    """Both scripts end to end at a toy size, and a compiled PyTorch that fails is a line."""
    pytest.importorskip("torch")
    pytest.importorskip("flow_matching")
    rows, missing = measured(tiny(), "pytorch,pytorch_sampler")
    assert {("pytorch", "ours / pytorch"), ("pytorch_sampler", "ours / reference")} <= set(rows), missing
    assert all(row["median"] > 0 for row in rows.values()) and missing == {}


LOOKS_AT_NO_DEVICE = """
import sys
from dfm_jax import cli
from dfm_jax.cli import command_line
from dfm_jax.benchmarking import driver
import jax

def described(*args):
    assert not jax._src.xla_bridge._backends, "a device was taken"
    raise SystemExit(7)

driver.describe_machine = described
words = ["--config=configs/uniform_gkl.py", "--mode=benchmark", "--workdir=" + sys.argv[1]]
cli.run(command_line.parse(["main.py", *words]))
"""


def test_the_command_itself_takes_no_device(tmp_path):
    """On a GPU it would hold three quarters of the memory that its processes are to measure."""
    command = [sys.executable, "-c", LOOKS_AT_NO_DEVICE, str(tmp_path)]
    done = subprocess.run(command, cwd=programs.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
