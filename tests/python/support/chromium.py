# SPDX-License-Identifier: Apache-2.0
"""Drives Debian's chromium over its DevTools protocol: no driver, no library of its own."""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import functools
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

EXECUTABLE = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)


# Seconds that the browser has to open a tab.
PATIENCE = 60


class PageError(AssertionError):
    """JavaScript that threw, or a condition that did not come true."""


class Connection:
    """Commands to the browser or to a tab. All methods are to be called from the loop that made it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                self._answers.pop(data["id"]).set_result(data)
            else:
                self.happened(data["method"], data["params"])
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(PageError("the browser has gone"))

    def happened(self, event: str, parameters: dict[str, Any]) -> None:
        """Called for each event."""

    async def send(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(self._answers[number], 60)
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']['message']}")
        return answer["result"]


class Page(Connection):
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        super().__init__(socket)
        self.console: list[str] = []
        self.requests: list[str] = []

    def happened(self, event: str, parameters: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled":
            parts = [a.get("value", a.get("description", "")) for a in parameters["args"]]
            self.console.append(" ".join(map(str, parts)))
        elif event == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            text = details.get("exception", {}).get("description", details["text"])
            self.console.append(f"EXCEPTION {text}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    async def evaluate(self, code: str) -> Any:
        """The value of an expression; promises are awaited."""
        result = await self.send(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return result["result"].get("value")

    async def wait_for(self, code: str, seconds: float = 60) -> None:
        """Returns once `code` is truthy."""
        end = asyncio.get_running_loop().time() + seconds
        while True:
            if await self.evaluate(f"Boolean({code})"):
                return
            if asyncio.get_running_loop().time() > end:
                console = "\n".join(self.console[-15:])
                raise PageError(f"not true after {seconds} s: {code}\nconsole:\n{console}")
            await asyncio.sleep(0.05)

    async def frames(self, count: int) -> None:
        """Returns when as many frames have been drawn from now on."""
        await self.evaluate(
            "new Promise((done) => { const next = (left) => left ? requestAnimationFrame(() =>"
            f" next(left - 1)) : done(true); next({count}) }})"
        )

    async def before_scripts(self, code: str) -> None:
        """Runs `code` in each page that is opened from now on, before the page's own."""
        await self.send("Page.addScriptToEvaluateOnNewDocument", source=code)

    async def goto(self, url: str) -> None:
        await self.send("Page.navigate", url=url)
        await self.wait_for("document.readyState === 'complete'")

    async def click(self, selector: str) -> None:
        """A real mouse click in the middle of the element, once it has lain still for 100 ms: the page may be drawing."""
        box = await self.evaluate(
            "(async () => { const middle = () => {"
            f" const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2] };"
            " for (let before = middle(), i = 0; i < 50; i++) {"
            " await new Promise((resolve) => setTimeout(resolve, 100)); const now = middle();"
            " if (String(before) === String(now)) return now; before = now } return middle() })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.send(
                "Input.dispatchMouseEvent",
                type=kind, x=box[0], y=box[1], button="left", clickCount=1,
            )  # fmt: skip

    async def press(self, key: str) -> None:
        """A key by its name ("Tab", "Enter", "Escape")."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text,
            )  # fmt: skip

    async def screenshot(self, path: pathlib.Path) -> None:
        result = await self.send("Page.captureScreenshot", format="png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(result["data"]))

    async def theme(self, scheme: str) -> None:
        """What the system prefers: "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.send("Emulation.setEmulatedMedia", features=[feature])


@contextlib.asynccontextmanager
async def open_page(width: int = 1280, height: int = 900) -> AsyncIterator[Page]:
    """A tab of this size, in a profile of its own (storage, cache) that goes with it."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            page = await asyncio.wait_for(_open(stack, _browser()), PATIENCE)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            # It has gone, or is frozen, and would be for each test that follows.
            _browser().end()
            page = await asyncio.wait_for(_open(stack, _browser()), PATIENCE)
        await page.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        yield page


async def _open(stack: contextlib.AsyncExitStack, browser: _Browser) -> Page:
    session = await stack.enter_async_context(aiohttp.ClientSession())
    whole = Connection(
        await stack.enter_async_context(session.ws_connect(browser.address + browser.path))
    )
    profile = await whole.send("Target.createBrowserContext", disposeOnDetach=True)
    tab = await whole.send("Target.createTarget", url="about:blank", **profile)
    url = f"{browser.address}/devtools/page/{tab['targetId']}"
    page = Page(await stack.enter_async_context(session.ws_connect(url, max_msg_size=0)))
    for domain in ("Page", "Runtime", "Network"):
        await page.send(f"{domain}.enable")
    return page


class _Browser:
    """Chromium, for all tests of this process.

    Attributes:
        address: of its server.
        path: under it, of the whole browser.
    """

    def __init__(self) -> None:
        if EXECUTABLE is None:
            raise FileNotFoundError("chromium was not found: tools/system_packages.sh installs it")
        self._folder = tempfile.mkdtemp(prefix="distorch-chromium-")
        self._process = subprocess.Popen(
            [
                EXECUTABLE, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", "--hide-scrollbars", "--remote-debugging-port=0",
                f"--user-data-dir={self._folder}", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        atexit.register(self.end)
        written = pathlib.Path(self._folder) / "DevToolsActivePort"
        for _ in range(600):
            with contextlib.suppress(FileNotFoundError, ValueError):
                port, self.path = written.read_text().splitlines()
                self.address = f"ws://127.0.0.1:{port}"
                return
            time.sleep(0.05)
        self.end()
        raise TimeoutError("chromium did not start in 30 s")

    def end(self) -> None:
        """Kill it, and start another where one is asked for."""
        _browser.cache_clear()
        atexit.unregister(self.end)
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


@functools.cache
def _browser() -> _Browser:
    return _Browser()


# The lowest contrast of the tab's text with what is behind it; WCAG AA asks 4.5 of small text.
CONTRAST = """(() => {
  const context = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d')
  const rgba = (text) => {
    context.clearRect(0, 0, 1, 1)
    context.fillStyle = text
    context.fillRect(0, 0, 1, 1)
    return [...context.getImageData(0, 0, 1, 1).data]
  }
  const light = (colour) => colour.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor)
      if (colour[3] === 255) return light(colour)
    }
    return 1
  }
  const text = [...document.querySelectorAll('.dt-panel :is(.dt-small, .dt-name, .dt-tag, .dt-note, h3, td, button:enabled)')]
  return Math.min(...text.map((node) => {
    const [fore, back] = [light(rgba(getComputedStyle(node).color)), behind(node)]
    return (Math.max(fore, back) + 0.05) / (Math.min(fore, back) + 0.05)
  }))
})()"""
