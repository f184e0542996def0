"""Processes that watch each other: one that dies, one that fails, and those that end in good order."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from dfm_jax.runtime import peers

PROCESS = """
    import json, os, sys, time
    from dfm_jax.runtime.peers import Listener, Watch
    index, how = int(sys.argv[1]), sys.argv[2]
    listener = Listener("localhost") if index == 0 else None
    if listener:
        print(json.dumps(listener.address), flush=True)
    watch = Watch(index, 3, listener.address if listener else json.loads(sys.argv[3]), listener)
    print("ready", flush=True)
    if how == "done":
        watch.done()
    elif how == "fails":
        print("error: the reason", file=sys.stderr)
        watch.fail(2)
    else:
        time.sleep(60)
"""


def start(index, how, address=None):
    words = [sys.executable, "-c", textwrap.dedent(PROCESS), str(index), how, json.dumps(address)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*hows):
    """Three processes that do what `hows` says; those that live on, by their number, and their exit statuses."""
    first = start(0, hows[0])
    assert first.stdout is not None
    address = json.loads(first.stdout.readline())
    processes = [first, *(start(i, hows[i], address) for i in (1, 2))]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return processes


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_process_that_is_killed_ends_the_others_at_once_with_one_line(victim):
    processes = run("waits", "waits", "waits")
    began = time.monotonic()
    processes[victim].send_signal(signal.SIGKILL)
    for index, process in enumerate(processes):
        _, said = process.communicate(timeout=30)
        if index == victim:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 1 and said == peers.line(victim, "") + "\n"
    assert time.monotonic() - began < 20


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_fails_has_said_why_and_the_others_say_which(victim):
    hows = ["waits"] * 3
    hows[victim] = "fails"
    for index, process in enumerate(run(*hows)):
        _, said = process.communicate(timeout=30)
        if index == victim:
            assert process.returncode == 2 and said == "error: the reason\n"
        else:
            assert process.returncode == 1 and said == peers.line(victim, peers.FAILED) + "\n"


def test_the_first_that_ends_is_the_one_that_is_named():
    first, failing, killed = run("waits", "fails", "waits")
    assert failing.wait(timeout=30) == 2
    time.sleep(peers.GRACE / 3)  # the others know, and wait whether they end by themselves
    killed.kill()
    _, said = first.communicate(timeout=30)
    assert first.returncode == 1 and said == peers.line(1, peers.FAILED) + "\n"


@pytest.mark.slow
def test_an_error_that_all_have_is_said_by_each_and_nothing_else():
    for process in run("fails", "fails", "fails"):
        _, said = process.communicate(timeout=30)
        assert process.returncode == 2 and said == "error: the reason\n"


def test_those_that_are_done_end_without_a_word():
    for process in run("done", "done", "done"):
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0 and not said


def test_a_stranger_is_not_let_in():
    listener = peers.Listener("localhost")
    stranger = peers.socket.create_connection(("localhost", listener.address["port"]))
    stranger.sendall(b'["wrong", 1]\n')
    link, _ = listener.socket.accept()
    assert peers._greeted(link, listener.token, 3) is None
    for left in (stranger, link, listener.socket):
        left.close()


def test_where_one_cannot_come_the_others_are_told_and_live_on(monkeypatch):
    monkeypatch.setattr(peers, "CONNECT", 0.1)
    listener = peers.Listener("localhost")
    listener.address["hosts"] = ["localhost"]
    monkeypatch.setattr(peers, "WELCOME", 0.3)
    second = peers._connect(1, listener.address)
    with pytest.raises(OSError):
        peers.Watch(0, 3, listener.address, listener)
    assert json.loads(second.makefile().readline()) == [peers.DONE, 0]
    second.close()
