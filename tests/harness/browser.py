"""A headless Chromium, driven over pipes by the DevTools protocol: one page, its errors and its requests.

    with Browser(directory) as browser:
        browser.open("http://127.0.0.1:9100/")
        browser.wait_for("document.title")      until an expression is true; its value
        browser.errors, browser.requests        what the console said, and which addresses were asked

Chromium is a program of the distribution; `needs_chromium` skips a test where it cannot be had.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

START_SECONDS = 60.0
ANSWER_SECONDS = 30.0
END_SECONDS = 5.0
READ, WRITE = 3, 4  # descriptors of --remote-debugging-pipe

Spawn = Callable[..., subprocess.Popen]
"""As subprocess.Popen; that of a network namespace starts the browser inside."""


class Browser:
    """`directory`: for the profile, which ends with the test."""

    def __init__(self, directory: Path, spawn: Spawn = subprocess.Popen) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._last = 0
        self._buffer = b""
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        arguments = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-sync"),
            *("--disable-component-update", "--disable-default-apps", "--mute-audio", "--remote-debugging-pipe"),
            *("--disable-breakpad", "--disable-crash-reporter"),
            *("--force-color-profile=srgb", f"--user-data-dir={directory / 'profile'}", "about:blank"),
        ]
        # a shell puts the pipes where Chromium looks for them, whatever numbers they have here
        script = f'exec "$0" "$@" {READ}<&{theirs_in} {WRITE}>&{theirs_out}'
        self._process = spawn(
            ["bash", "-c", script, str(CHROMIUM), *arguments],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(directory), "XDG_CONFIG_HOME": str(directory)},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = ""

    def __enter__(self) -> Self:
        try:
            targets = self._call("Target.getTargets", seconds=START_SECONDS)["targetInfos"]
            page = next(each for each in targets if each["type"] == "page")
            attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self._call(f"{domain}.enable")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._session = ""
            self._call("Browser.close", seconds=END_SECONDS)
            self._process.wait(END_SECONDS)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)

    # -- what is done to the page

    def size(self, width: int, height: int, scale: float = 1.0) -> None:
        """The window, in CSS pixels."""
        mobile = width < 700
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    def prefer(self, **features: str) -> None:
        """Media features, such as prefers_color_scheme="dark"."""
        pairs = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._call("Emulation.setEmulatedMedia", features=pairs)

    def open(self, url: str) -> None:
        """Until the page is complete, without what its script asks for."""
        answer = self._call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        self.wait_for(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 10.0) -> Any:
        """The value of the expression, once it is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < until, f"{expression} was expected within {seconds:g} s; {self.errors}"
            select.select([], [], [], 0.05)
        return value

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def network(self, *, offline: bool) -> None:
        """Cut the page off, or let it on again."""
        limits = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self._call("Network.emulateNetworkConditions", offline=offline, **limits)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        more: dict[str, Any] = {"captureBeyondViewport": True} if whole else {}
        if whole:
            height = self.run("document.documentElement.scrollHeight")
            width = self.run("innerWidth")
            more["clip"] = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png", **more)["data"]))

    # -- the protocol: JSON objects, each with a NUL behind it

    def _call(self, method: str, seconds: float = ANSWER_SECONDS, **parameters: Any) -> Mapping[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + seconds
        while True:
            answer = self._next(until, method)
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _next(self, until: float, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            readable, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert readable, f"chromium did not answer {waiting_for}"
            data = os.read(self._in, 1 << 20)
            assert data, f"chromium ended during {waiting_for}: status {self._process.poll()}"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning"):
                self.errors.append(str([each.get("value") for each in parameters["args"]]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                entry = parameters["entry"]
                self.errors.append(f"{entry['text']} {entry.get('url', '')}")
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
