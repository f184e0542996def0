"""How long a step takes, whether the loss still falls, and the checkpoint that is kept for that."""

import jax.numpy as jnp
import pytest

from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.training import watch


def test_the_pace_leaves_out_the_first_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    pace = watch.Pace(first=100)
    found = []
    for step in range(101, 120):
        now[0] += 60.0 if step == 101 else 0.5
        found.append(pace(step, line=step % 10 == 0))
        now[0] += 7.0  # an evaluation
        pace.paused(7.0)
    assert [seconds for seconds in found if seconds is not None] == [pytest.approx(0.5)]
    assert found.index(0.5) == 106 - 101 + 1  # six half seconds are three


def test_a_loss_that_falls_no_more_is_said_every_three_evaluations():
    falls = watch.Falling([(10, 3.0), (20, float("nan"))])
    assert falls(30, 2.5, 0.1) == (True, "")
    told = [
        falls(step, loss, 0.1) for step, loss in ((40, 2.6), (50, 2.6), (60, 2.65), (70, 3.0), (80, 3.0), (90, 3.0))
    ]
    assert [best for best, _ in told] == [False] * 6
    assert [bool(line) for _, line in told] == [False, False, True, False, False, True]
    assert "for 3 evaluations: 2.6500 now, 2.5000 at step 30" in told[2][1]
    assert "for 6 evaluations and has risen by more than its error: 3.0000" in told[5][1]
    assert falls(100, 2.4, 0.1) == (True, "")


def test_it_goes_on_counting_in_a_run_that_continues():
    falls = watch.Falling([(10, 2.0), (20, 2.1), (30, 2.2)])
    is_best, line = falls(40, 2.3, 1.0)
    assert not is_best and "for 3 evaluations: 2.3000 now, 2.0000 at step 10" in line


def test_the_best_checkpoint_stays_and_is_found(tmp_path):
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.best_step() is None
        for step, loss in ((1, 3.0), (2, 2.0), (3, None), (4, None)):
            checkpoints.save(step, {"w": jnp.full(3, step, jnp.float32)})
            if loss is not None:
                checkpoints.mark_best(step, loss)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4] and checkpoints.best_step() == 2
        checkpoints.prune(1)
        assert checkpoints.steps() == [2, 4]
    assert Checkpoints(tmp_path).best_step() == 2
    (tmp_path / "best.json").write_text("{")
    assert Checkpoints(tmp_path).best_step() is None
