# SPDX-License-Identifier: Apache-2.0
"""What the page writes to the console in debug mode, and what it says when the server fails."""

from __future__ import annotations

from chromium import Page
from on_page import drawn, on_page
from stand_in import StandIn


def test_debug_mode_logs_each_step() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.evaluate("app.extensionManager.setting.set('DisTorch.debug_mode', true)")
        hover = "document.querySelector('[data-key=\"badge-cuda:%d\"]').dispatchEvent(new Event('mouseenter'))"
        await page.wait_for("document.querySelector('.dt-badge')")
        await page.evaluate(hover % 0)
        server.backend.rows = []
        await server.push()
        await page.wait_for(
            "document.querySelector('#dt-tip-cuda-1').textContent.includes('No models')"
        )
        await page.evaluate(hover % 1)
        await page.click("#tab-distorch")
        await page.click("#tab-distorch")
        await page.evaluate("window.fetch = async () => { throw new Error('no network') }")
        await page.evaluate("app.extensionManager.setting.set('DisTorch.badges', false)")
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        text = "\n".join(page.console)
        for expected in (
            "[DisTorch] [updateGPUTooltip] Starting update for GPU 0",
            "[updateGPUTooltip] Available GPU IDs:",
            "[updateGPUTooltip] GPU 0 data:",
            "[updateGPUTooltip] Found 3 models on GPU 0:",
            "  1. Wan2_2-T2V-A14B-HIGH (checkpoint): 9216 MB [WAN22]",
            "[updateGPUTooltip] No models found for GPU 1",
            "  - gpuData exists: true",
            "  - models array exists: true",
            "  - models length: 0",
        ):
            assert expected in text

    on_page(check, tab=False)


def test_a_server_that_fails_is_said_and_logged_with_its_stack() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.evaluate("app.extensionManager.setting.set('DisTorch.debug_mode', true)")
        await page.evaluate("app.extensionManager.setting.set('DisTorch.badges', false)")
        await server.push()  # makes the page's state stale
        await drawn(page, server)
        await page.evaluate("window.fetch = async () => ({ ok: false, status: 503 })")
        await page.click("#tab-distorch")
        await page.wait_for("document.querySelector('.dt-error')")
        shown = await page.evaluate("document.querySelector('.dt-error').textContent")
        assert "The server did not answer: /distorch/" in shown
        assert "status 503" in shown
        text = "\n".join(page.console)
        assert "Response status: 503 FAILED" in text
        assert "[refresh] Error stack: Error: /distorch/" in text

    on_page(check, tab=False)
