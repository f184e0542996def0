"""Headless Chromium, driven over its debugging pipe: no package but the browser itself."""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

# The browser reads commands from descriptor 3 and answers on 4.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
OWN = ("file:", "data:", "about:", "blob:")
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab. A context manager.

    complaints: console errors and uncaught exceptions. fetched: addresses asked for, but for files and what a page
    holds itself.
    """

    def __init__(self, browser: str, url: str, profile: pathlib.Path):
        self.complaints: list[str] = []
        self.fetched: list[str] = []
        self._number, self._rest = 0, b""
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe --window-size=1100,900"
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(to_browser), str(from_browser), browser]
            + [*flags.split(), f"--user-data-dir={profile}"],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.ask(f"{domain}.enable")
        self.ask("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def ask(self, method: str, **params) -> dict:
        """The answer to one command of the DevTools protocol."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message.get("method", ""), message.get("params", {}))

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 16)
            assert part, "the browser is gone"
            self._rest += part
        text, self._rest = self._rest.split(b"\0", 1)
        return json.loads(text)

    def _note(self, method: str, params: dict) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])

        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(OWN):
            self.fetched.append(params["request"]["url"])

    def look(self, width: int, *, dark: bool = False) -> None:
        """Makes the window so wide, in pixels, for a reader who prefers light or dark pages."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str):
        """The JSON value of a JavaScript expression."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.05)

    def screenshot(self, path: pathlib.Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)
