# SPDX-License-Identifier: Apache-2.0
"""The browser of these tests: one that crashes or freezes costs the test in which it does, and no other."""

from __future__ import annotations

import asyncio
import os
import signal

import chromium
import pytest
from waiting import wait_for


async def title() -> str:
    async with chromium.open_page() as page:
        await page.goto("data:text/html,<title>here</title>")
        return str(await page.evaluate("document.title"))


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_another_is_started(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert asyncio.run(title()) == "here"
    before = chromium._browser()
    os.kill(before._process.pid, getattr(signal, name))
    if name == "SIGKILL":
        wait_for(lambda: before._process.poll() is not None)
    else:
        monkeypatch.setattr(chromium, "PATIENCE", 10)
    assert asyncio.run(title()) == "here"
    assert chromium._browser() is not before


def test_what_waits_is_told_when_it_goes() -> None:
    async def run() -> None:
        async with chromium.open_page() as page:
            chromium._browser().end()
            with pytest.raises(chromium.PageError, match="has gone"):
                await page.evaluate("new Promise(() => {})")

    asyncio.run(run())
