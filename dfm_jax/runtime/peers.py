"""Whether the other processes of a run are alive: each has a connection to process 0, which ends with the process.

The kernel closes the connections of a process that dies, however it dies, so the others know at once; a machine that is
lost is noticed by TCP's own probes. jax notices after its heartbeat, or never where all wait in a collective of a GPU.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from typing import NoReturn

# What ends on every process at about the same time, each with its own line, is no death of another.
GRACE = 3.0
CONNECT = 10.0  # seconds for an attempt
WELCOME = 5.0  # seconds that process 0 waits beyond the attempts of the others
FAILED, DONE = "failed", "done"


def line(index: int, how: str) -> str:
    """What a process says of another that ended: `how` is FAILED, or '' where it said nothing before it ended."""
    why = "with an error, see what it said" if how == FAILED else "without a word, as when it is killed"
    return (
        f"error: process {index} ended; {why}; expected all processes of a run, so this one ends too; the same command "
        "for all of them goes on from the last checkpoint"
    )


class Listener:
    """Process 0's side before the others have come: `address` is for them to know."""

    def __init__(self, host: str | None):
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self.socket = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
        self.token = secrets.token_hex(16)
        hosts = [host, socket.gethostname(), socket.getfqdn()]
        with contextlib.suppress(OSError):
            hosts += [str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)]
        port = self.socket.getsockname()[1]
        self.address = {"hosts": list(dict.fromkeys(filter(None, hosts))), "port": port, "token": self.token}


class Watch:
    """Ends this process, with one line, when another process of the run ends otherwise than by `done`.

    Args:
      index, count: this process, of so many.
      address: of process 0, see `Listener`.
      listener: on process 0.

    Raises:
      OSError: process 0 cannot be reached.
    """

    def __init__(self, index: int, count: int, address: dict, listener: Listener | None = None):
        self._index = index
        self._writing = threading.Lock()
        self._links: dict[int, socket.socket] = {}
        self._left: set[int] = set()  # those whose connection has ended
        self._finished: set[int] = set()  # those that are done
        self._leaving = False
        self._news = threading.Lock()  # taken for good by the first end of another: the ends that follow come of it
        if listener is None:
            self._links[0] = _connect(index, address)
        else:
            with listener.socket:
                self._welcome(listener, count)
        for other, link in self._links.items():
            threading.Thread(target=self._follow, args=(other, link), name=f"process {other}", daemon=True).start()

    def _welcome(self, listener: Listener, count: int) -> None:
        listener.socket.settimeout(CONNECT * len(listener.address["hosts"]) + WELCOME)
        try:
            while len(self._links) < count - 1:
                link, _ = listener.socket.accept()
                other = _greeted(link, listener.token, count)
                if other is None:
                    link.close()
                else:
                    self._links[other] = link
        except OSError:
            self._tell(DONE, 0)  # those that have come are not to take the end of this for the end of process 0
            raise

    def done(self) -> None:
        """This process has done its part: its end is no news to the others."""
        self._leaving = True
        self._tell(DONE, self._index)

    def fail(self, status: int) -> NoReturn:
        """Ends this process with `status`, after it has told the others; what is wrong has been said."""
        self._leaving = True
        self._tell(FAILED, self._index)
        self._leave(status)

    def _leave(self, status: int) -> NoReturn:
        """Ends without jax's farewell, which waits for the processes that are gone. Process 0 is the last to go: when
        it ends, jax ends the others in the middle of a word."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self._index == 0:
            deadline = time.monotonic() + GRACE + 3
            while len(self._left) < len(self._links) and time.monotonic() < deadline:
                time.sleep(0.02)
        os._exit(status)

    def _tell(self, how: str, index: int) -> None:
        message = (json.dumps([how, index]) + "\n").encode()
        with self._writing:
            for other, link in self._links.items():
                if other != index:
                    with contextlib.suppress(OSError):
                        link.sendall(message)

    def _follow(self, other: int, link: socket.socket) -> None:
        try:
            with link.makefile("rb") as messages:
                for message in messages:
                    how, index = json.loads(message)
                    if how == DONE:
                        self._finished.add(index)
                    else:
                        self._ended(index, how)
        except (OSError, ValueError):
            pass
        self._left.add(other)
        self._ended(other, "")

    def _ended(self, index: int, how: str) -> None:
        if self._leaving or index in self._finished or not self._news.acquire(blocking=False):
            return
        if self._index == 0:
            self._tell(how, index)
        if how == FAILED:
            time.sleep(GRACE)
            if self._leaving:
                return
        self._leaving = True
        os.write(2, (line(index, how) + "\n").encode())
        self._leave(1)


def _connect(index: int, address: dict) -> socket.socket:
    reasons = []
    for host in address["hosts"]:
        try:
            link = socket.create_connection((host, address["port"]), timeout=CONNECT)
        except OSError as error:
            reasons.append(f"{host}: {error}")
            continue
        link.sendall((json.dumps([address["token"], index]) + "\n").encode())
        _probe(link)
        return link
    raise OSError(None, "; ".join(reasons))


def _greeted(link: socket.socket, token: str, count: int) -> int | None:
    """The number of the process that has come; None where it is none of this run."""
    link.settimeout(CONNECT)
    try:
        word = b""
        while not word.endswith(b"\n") and len(word) < 256:
            part = link.recv(1)
            if not part:
                return None
            word += part
        given, index = json.loads(word)
    except (OSError, ValueError, TypeError):
        return None
    if not secrets.compare_digest(str(given), token) or not 0 < index < count:
        return None
    _probe(link)
    return index


def _probe(link: socket.socket) -> None:
    """Lets TCP notice a machine that is gone within 30 seconds."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
