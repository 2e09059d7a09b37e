"""Pages in a real browser without a window, driven as a person would: keys are pressed, scripts may be asked."""

import base64
import contextlib
import io
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SECONDS = 120  # that an answer may take on a busy machine
# The browser reads from 3 and writes to 4.
LAUNCH = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]  # out of the way of 3 and 4
for number, pipe in zip((3, 4), pipes):
    os.dup2(pipe, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """Chromium with one page; DevTools' protocol runs over two pipes, a JSON object and a NUL byte each way.

    console: what the page and the browser wrote into its console, errors included.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1280, 900)):
        command = shutil.which(os.environ.get("CHROMIUM", "chromium")) or shutil.which("chromium-browser")
        if command is None:
            pytest.skip("no chromium: pages are not opened in a browser")
        self.console: list[str] = []
        self._loaded, self._number, self._rest = 0, 0, b""
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        arguments = [command, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
                     f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"]  # fmt: skip

        # A session of its own: if the browser hangs, its children go with it.
        with open(folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(to_browser), str(from_browser), *arguments],
                stdout=log, stderr=log, start_new_session=True, pass_fds=(to_browser, from_browser),
            )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._read, selectors.EVENT_READ)
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **metrics)
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    _session: str | None = None

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        for address in ("about:blank", url):  # a page of which only the fragment differs would not be loaded again
            self._loaded = 0
            self._ask("Page.navigate", url=address)
            while not self._loaded:
                self._message()

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise, what it gives."""
        answer = self._ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys one after the other; a letter is typed where something takes text."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            self._ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self._ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def until(self, expression: str) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(expression)):
            assert time.monotonic() < end, expression
            time.sleep(0.05)
        return value

    def picture(self) -> np.ndarray:
        """What is on the screen, RGB [height, width, 3]."""
        data = base64.b64decode(self._ask("Page.captureScreenshot")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        for pipe in (self._read, self._write):
            os.close(pipe)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert self._selector.select(SECONDS), "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        kind = message.get("method")
        if kind == "Page.loadEventFired":
            self._loaded += 1
        if kind in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(json.dumps(message["params"]))
        return message
