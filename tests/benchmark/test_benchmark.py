"""The benchmark mode: timing on a clock of our own, tables, and the cheap benchmarks end to end at a tiny size."""

import json

import pytest

from configs import quickstart
from dfm_jax import benchmark
from dfm_jax.benchmark import counterparts, results
from dfm_jax.benchmark.timing import Timing, measure
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


def test_a_rate_has_its_quartiles_in_order():
    row = results.per_second("train", "tokens", 100.0, Timing(9.0, (1.0, 2.0, 4.0)), "tokens/s")
    assert row.median == 50.0 and row.low < row.median < row.high
    assert (row.first, row.samples) == (9.0, 3)


def test_numbers_are_read_easily():
    assert [results.number(x) for x in (0, 0.01234, 3.14159, 123456.7)] == ["0", "0.0123", "3.14", "123,457"]


def tiny():
    config = quickstart.get_config()
    config.model.hidden_size, config.model.n_heads, config.model.n_blocks, config.model.length = 16, 2, 1, 16
    config.training.batch_size = config.eval.batch_size = 4
    config.eval.sample_batch_size = 2
    config.data.num_workers = 1
    return config


@pytest.mark.slow
def test_training_and_operations_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dfm_jax.benchmark.timing.measure.__kwdefaults__", measure.__kwdefaults__ | {"most": 5})
    monkeypatch.setattr("dfm_jax.benchmark.operations.TOKENS", 64)
    assert benchmark.run(tiny(), tmp_path, only="train,attention,head") == 0
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert found["machine"]["versions"]["jax"] and found["machine"]["cores"] >= 1
    rows = {(row["benchmark"], row["what"]): row for row in found["rows"]}
    tokens, step = rows["train", "tokens"], rows["train", "step"]
    assert tokens["median"] * step["median"] == pytest.approx(4 * 16, rel=1e-6)
    assert tokens["samples"] == 5 and tokens["first"] > 0
    assert rows["train", "memory, as compiled"]["median"] > 0
    assert ("attention", "xla forward and backward") in rows
    # What this machine cannot run is not measured.
    assert not any(name == "attention" and what.startswith("cudnn") for name, what in rows)
    assert {what for name, what in rows if name == "head"} >= {"dense draws", "blocks with gradients"}
    page = (tmp_path / "benchmark.md").read_text()
    assert page in capsys.readouterr().out and "| train | tokens |" in page


def test_an_unknown_name_is_one_line(tmp_path):
    for only in ("speed", "train,speed", ""):
        with pytest.raises(UsageError, match=f"only={only}: accepted are some of train, likelihood, sampler"):
            benchmark.run(tiny(), tmp_path, only=only)


def test_what_cannot_run_here_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(counterparts, "NEEDED", ("no_such_module",))
    assert benchmark.run(tiny(), tmp_path, only="pytorch") == 0
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert found["rows"] == [] and "no_such_module" in found["left_out"]["pytorch"]
    assert "Not run" in (tmp_path / "benchmark.md").read_text()


def test_the_counterparts_figures_are_read():
    text = (
        "best   wall      ours  1.200 s  pytorch  1.500 s  ratio 0.80\nmedian processor ours  2.0 s  pytorch  1.0 s\n"
    )
    rows = list(counterparts.parse(text, "note"))
    assert [(row.what, row.median) for row in rows] == [
        ("our step, best, wall time", 1.2),
        ("PyTorch's step, best, wall time", 1.5),
        ("our step, median, processor time", 2.0),
        ("PyTorch's step, median, processor time", 1.0),
    ]
