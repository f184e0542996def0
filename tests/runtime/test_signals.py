"""A first signal asks, a second interrupt ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from dfm_jax.runtime.signals import GracefulStop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(number, capfd):
    before = signal.getsignal(number)
    with GracefulStop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 10
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.requested and stop.signal_name == number.name
    assert signal.getsignal(number) == before
    assert f"{number.name}: finishing the step and saving" in capfd.readouterr().err


def test_a_second_interrupt_ends_at_once_inside_a_long_call():
    """The main thread is in a C call that keeps no Python bytecode boundary, as in a compilation."""
    script = """
        import ctypes
        from dfm_jax.runtime.signals import GracefulStop
        libc = ctypes.CDLL(None)
        with GracefulStop():
            print("ready", flush=True)
            while libc.sleep(60):  # interrupted by a signal, it begins again, still within one call's bytecode
                pass
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr is not None and "ended by a second interrupt" in process.stderr.read()
