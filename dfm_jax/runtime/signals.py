"""Stopping on request: finish the step, save, leave."""

import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any


class GracefulStop:
    """While the context is open, SIGTERM and SIGINT set `requested` instead of ending the process.

    The second SIGINT ends it at once with status 130, even while the main thread is inside a long
    compilation: the signals' numbers come through a pipe (`signal.set_wakeup_fd`) to a thread of its own,
    which needs no bytecode boundary of the main thread. Enter it on the main thread, after
    `jax.distributed.initialize`.

    For a library's caller, such as a notebook (`ends_process=False`), the second SIGINT raises KeyboardInterrupt
    instead, and outside the main thread, where Python has no signals, the context does nothing.

    Attributes:
      requested: a signal has come.
      signal_name: its name ("SIGTERM"), or None.
    """

    def __init__(
        self, *, announce: str = "finishing the step and saving; once more ends at once", ends_process: bool = True
    ):
        self.signal_name: str | None = None
        self._announce = announce
        self._ends_process = ends_process
        self._entered = False
        self._interrupts = self._handled = 0  # SIGINTs that the thread, and Python's handler, have seen
        self._restore: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal_name is not None

    def __enter__(self) -> "GracefulStop":
        if not self._ends_process and threading.current_thread() is not threading.main_thread():
            return self
        self._entered = True
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._restore[number] = signal.signal(number, self._handle)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        if not self._entered:
            return
        for number, handler in self._restore.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._writer.close()  # ends the thread: it reads the end of the stream
        self._thread.join()
        self._reader.close()

    def _watch(self) -> None:
        while numbers := self._reader.recv(64):
            for number in numbers:
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._on_signal(signal.Signals(number))

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts == 2 and self._ends_process:
                sys.stderr.write("\nended by a second interrupt; the last checkpoint is kept\n")
                sys.stderr.flush()
                os._exit(130)
        if not self.requested:
            self.signal_name = number.name
            sys.stderr.write(f"\n{number.name}: {self._announce}\n")
            sys.stderr.flush()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """A Python handler must exist for the wake-up descriptor to be written to; the thread does the work."""
        if number == signal.SIGINT and not self._ends_process:
            self._handled += 1
            if self._handled == 2:
                raise KeyboardInterrupt
