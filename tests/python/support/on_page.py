# SPDX-License-Identifier: Apache-2.0
"""Runs a check on a fresh page of the stand-in server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from chromium import Page, open_page
from stand_in import StandIn, StandInBackend, serve

ROWS = "document.querySelectorAll('.dt-model').length"
COUNT_INTERVALS = """
  window.intervals = 0
  const original = window.setInterval
  window.setInterval = (...args) => { window.intervals += 1; return original(...args) }
"""
Check = Callable[[Page, StandIn], Awaitable[None]]


async def drawn(page: Page, server: StandIn) -> None:
    """Returns when the page has had every message, and the frame in which it would draw it."""
    await page.wait_for(f"api.received === {server.sent}")
    await page.frames(2)


def on_page(
    check: Check, backend: StandInBackend | None = None, *, tab: bool = True, height: int = 1100
) -> None:
    """Runs `check` on a fresh page, with the tab open; nothing may have thrown there."""

    async def run() -> None:
        async with serve(backend or StandInBackend()) as server, open_page(1280, height) as page:
            await page.before_scripts(COUNT_INTERVALS)
            await page.goto(server.url)
            await page.wait_for("window.started")
            if tab:
                await page.click("#tab-distorch")
                await page.wait_for("document.querySelector('.dt-device')")
            await check(page, server)
            wrong = ("EXCEPTION", "Unhandled message")
            assert [line for line in page.console if line.startswith(wrong)] == []

    asyncio.run(run())
