"""Work that takes long says how far it is, and that it goes on."""

import time

from dfm_jax.runtime.terminal import Countdown, Heartbeat, clock, note


def test_the_clock():
    assert [clock(s) for s in (0, 75, 4000, float("inf"), float("nan"))] == ["0:00", "1:15", "1:06:40", "?", "?"]


def test_lines_of_work_in_parts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("dfm_jax.runtime.terminal.time.monotonic", lambda: now[0])
    lines: list[str] = []
    countdown = Countdown("likelihood of a", 100, "blocks", lines.append, every=10)
    countdown._began = 0.0
    for done, at in ((10, 30.0), (20, 32.0), (30, 34.0), (60, 42.0), (100, 50.0)):
        now[0] = at
        countdown(done)
    assert lines == [
        "likelihood of a: 10 of 100 blocks, at most 4:30 left",  # the first part compiles
        "likelihood of a: 20 of 100 blocks, 0:16 left",
        "likelihood of a: 60 of 100 blocks, 0:10 left",
        "likelihood of a: 100 of 100 blocks, 0:50",
    ]


def test_a_long_part_is_not_silent():
    lines: list[str] = []
    with Heartbeat(lambda: "still at it", lines.append, silence=0.05) as heart:
        for _ in range(8):
            time.sleep(0.01)
            heart.heard()
        assert not lines
        time.sleep(0.3)
    said = len(lines)
    assert said >= 2 and set(lines) == {"still at it"}
    time.sleep(0.1)
    assert len(lines) == said


def test_any_line_is_a_sign_of_life(capsys):
    lines: list[str] = []
    with Heartbeat(lambda: "still at it", lines.append, silence=0.5):
        for _ in range(30):
            time.sleep(0.02)
            note("a line")
        with Heartbeat(lambda: "at a part", lines.append, silence=0.1):
            time.sleep(0.7)
        assert lines and set(lines) == {"at a part"}
