"""The lines that say how far a preparation is."""

import io
import re
import types

from dfm_jax.data import Printer, Progress
from dfm_jax.data.progress import Meter


def test_a_line_gives_the_rate_and_the_time_left():
    progress = Progress(documents=10, tokens=5000, seconds=100.0, fraction=0.25, unit="a")
    assert progress.tokens_per_second == 50.0
    assert progress.seconds_left == 300.0
    assert str(progress) == " 25.0%  10 documents  5,000 tokens  50 tokens/s  1:40, 5:00 left"
    assert str(Progress(0, 0, 4000.0, 0.0, "a")).endswith("1:06:40, ? left")


def test_the_time_left_of_a_resumed_run_counts_its_own_work_alone():
    assert Progress(10, 5000, 100.0, 0.9, "a", begun=0.8).seconds_left == 100.0


def test_without_a_terminal_a_line_now_and_then_and_one_at_the_end():
    file = io.StringIO()
    printer = Printer(file, interval=10.0)
    for second in range(0, 26, 5):
        printer(Progress(1, second, float(second), second / 100, "a"))
    printer(Progress(1, 26, 26.0, 1.0, "a", finished=True))
    assert re.findall(r"(\d+) tokens ", file.getvalue()) == ["10", "20", "26"]


def test_the_meter_weighs_units_by_their_size(monkeypatch):
    told = []
    meter = Meter(100, told.append)
    clock = iter(range(1, 100))
    monkeypatch.setattr("dfm_jax.data.progress.time.monotonic", lambda: meter._start + next(clock))
    first, second = (types.SimpleNamespace(name=n, size=s, fraction=lambda: 0.5) for n, s in (("a", 60), ("b", 40)))
    meter.resume(first)
    meter.add(first, 1, 10)
    meter.finish(first)
    meter.add(second, 1, 10)
    meter.close()
    assert [(p.fraction, p.begun, p.tokens, p.finished) for p in told] == [
        (0.3, 0.3, 10, False),
        (0.8, 0.3, 20, False),
        (1.0, 0.3, 20, True),
    ]
