"""A headless Chromium that is told what to do over its debugging pipe; it needs nothing but the browser itself."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
HEIGHT = 900


def chromium() -> str | None:
    """The browser of this machine, if it has one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class View:
    """A page as it was shown: its width in pixels, the names of what sticks out, and what was said and asked for."""

    scroll_width: int
    too_wide: list[str]
    smallest_font: float
    background: str
    messages: list[str]
    requests: list[str]


class Browser:
    """Made by `browser`; every command waits for its answer, events in between are kept."""

    def __init__(self, send: IO[bytes], receive: IO[bytes]) -> None:
        self._send, self._receive = send, receive
        self._n_sent, self._pending, self._events = 0, b"", []

    def show(self, page: Path, width: int, scheme: str, picture: Path | None = None) -> View:
        """``page`` at ``width`` pixels, in the colours of ``scheme``, light or dark; a PNG goes to ``picture``."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable", session)
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", session, **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", session, features=features)
        self._call("Page.navigate", session, url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        view = View(
            self._evaluate(session, "document.documentElement.scrollWidth"),
            self._evaluate(session, _TOO_WIDE),
            self._evaluate(session, _SMALLEST_FONT),
            self._evaluate(session, "getComputedStyle(document.body).backgroundColor"),
            list(self._messages()),
            [e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"],
        )
        if picture is not None:
            shot = self._call("Page.captureScreenshot", session, captureBeyondViewport=True)
            picture.write_bytes(base64.b64decode(shot["data"]))
        self._call("Target.closeTarget", targetId=target)
        return view

    def _messages(self) -> Iterator[str]:
        """What the console shows: logged messages, errors of scripts, and complaints of the browser."""
        for event in self._events:
            if event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                yield json.dumps(event["params"])

    def _evaluate(self, session: str, expression: str) -> Any:
        return self._call("Runtime.evaluate", session, expression=expression, returnByValue=True)["result"]["value"]

    def _call(self, method: str, session: str | None = None, **params: object) -> dict[str, Any]:
        self._n_sent += 1
        message = {"id": self._n_sent, "method": method, "params": params}
        message |= {} if session is None else {"sessionId": session}
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while (answer := self._read()).get("id") != self._n_sent:
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            raw = os.read(self._receive.fileno(), 1 << 16)
            if not raw:
                raise RuntimeError("the browser has ended")
            self._pending += raw
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)


# elements that reach beyond the right edge, but for what scrolls in a box of its own
_TOO_WIDE = """Array.from(document.querySelectorAll("body *"))
    .filter(e => !e.closest(".wide") && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.tagName + " " + e.textContent.slice(0, 40))"""
# in pixels as they are shown: pictures are scaled
_SMALLEST_FONT = """Math.min(...Array.from(document.querySelectorAll("svg text, p, td, pre, span"))
    .filter(e => e.textContent.trim() && e.getClientRects().length)
    .map(e => { const svg = e.ownerSVGElement;
                const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
                return parseFloat(getComputedStyle(e).fontSize) * scale; }))"""


@contextmanager
def browser() -> Iterator[Browser]:
    """A running browser with a profile of its own, which has no network but may read files."""
    to_read, to_send = os.pipe()
    to_receive, to_write = os.pipe()
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
    offline = ("--disable-background-networking", "--disable-component-update", "--proxy-server=127.0.0.1:9")
    with tempfile.TemporaryDirectory(prefix="kvtuner-browser-", ignore_cleanup_errors=True) as profile:
        command = [str(chromium()), *options, *offline, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        # the browser reads its file 3 and writes its file 4
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}', *command]
        process = subprocess.Popen(
            shell, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        with os.fdopen(to_send, "wb") as send, os.fdopen(to_receive, "rb") as receive:
            try:
                yield Browser(send, receive)
            finally:
                process.terminate()
                process.wait(20)
