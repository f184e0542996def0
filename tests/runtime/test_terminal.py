"""Progress on a terminal and off it."""

import fcntl
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios
import textwrap

import pytest

from dfm_jax.runtime import terminal
from dfm_jax.runtime.terminal import Progress, note, warn


def test_plain_lines_every_n_steps_and_at_the_end(capsys):
    with Progress(total=250, start=95, every=100) as progress:
        for step in range(96, 251):
            progress.update(step, loss=1.23456, tokens_per_second=45678.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 100/250", "step 200/250", "step 250/250"]
    assert lines[0].startswith("step 100/250  loss 1.2346  45.7k tokens/s  ") and lines[-1].endswith("0:00 left")


def test_other_processes_say_nothing(capsys):
    with Progress(total=2, enabled=False) as progress:
        progress.update(2, loss=0.0, tokens_per_second=1.0)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal():
    script = """
        from dfm_jax.runtime.terminal import Progress, note
        with Progress(total=200, start=100) as progress:
            progress.update(150, loss=1.5, tokens_per_second=1e6)
            note("a line above the bar")
            progress.update(200, loss=1.25, tokens_per_second=2e6)
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=slave)
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(master)
    assert process.wait() == 0
    text = shown.decode()
    assert "step 200/200, loss 1.2500, 2M tokens/s" in text and "a line above the bar" in text and "█" in text


def test_notes_and_warnings(capsys):
    note("a")
    warn("b")
    assert capsys.readouterr().err == "a\nwarning: b\n"


@pytest.mark.parametrize("folder", ["runs/a", "my run", "a'b", "$HOME;rm *", "한국어 ±", "a\nb", "-x"])
@pytest.mark.parametrize("started", ["main.py", "../my code/main.py", "/usr/bin/dfm_jax", "/x/dfm_jax/__main__.py", ""])
def test_a_printed_command_is_one_for_the_shell(monkeypatch, folder, started):
    monkeypatch.setattr(sys, "argv", [started])
    words = shlex.split(terminal.command({"mode": "sample", "workdir": folder, "prompt": "The "}))
    program = [started] if started.endswith("main.py") and "__" not in started else ["-m", "dfm_jax"]
    assert words == ["python", *program, "--mode=sample", f"--workdir={folder}", "--prompt=The "]
    done = subprocess.run(["sh", "-c", f"printf %s {shlex.quote(folder)}"], capture_output=True, check=True)
    assert done.stdout == folder.encode()
