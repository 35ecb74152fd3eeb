# SPDX-License-Identifier: Apache-2.0
"""A walk through the tab in real ComfyUI with its front end: `make walk`. With DISTORCH_UPDATE_PICTURES=1 it makes the
pictures of docs/images anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import CONTRAST, open_page
from comfy_harness import ComfyServer, Workflow, models, versions

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

IMAGES = pathlib.Path(__file__).resolve().parents[3] / "docs/images"
CARD = "[...document.querySelectorAll('.dt-model')].find((e) => e.innerText.includes('wan'))"
STRING = "sim:0,20%;sim:1,30%;cpu,*"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("walk")
    models.write_all(base / "models")
    made = ComfyServer(versions(dynamic=False)[0], base)
    made.request("/settings/Comfy.TutorialCompleted", True)  # else templates cover the page
    yield made
    made.stop()


def workflow() -> Workflow:
    w = Workflow()
    ours = w.add(
        "UNETLoaderDisTorch2MultiGPU", unet_name="wan.safetensors", weight_dtype="default",
        compute_device="sim:0", virtual_vram_gb=0.0, donor_device="cpu",
        expert_mode_allocations=STRING, eject_models=False,
    )  # fmt: skip
    w.save(w.sample(ours, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8), steps=4), "wan")
    clip = w.add("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion")
    w.save(w.add("CLIPTextEncode", clip=clip, text="a cat"), "prompt")
    return w


async def dressed(page: Any, theme: str, width: int) -> None:
    """The front end in a theme, with a sidebar of some width."""
    await page.evaluate(f"app.extensionManager.setting.set('Comfy.ColorPalette', '{theme}')")
    dark = json.dumps(theme == "dark")
    await page.wait_for(f"document.documentElement.matches('.dark-theme') === {dark}")
    await page.evaluate(
        "(() => { const side = document.querySelector('.side-bar-panel');"
        f" side.style.flexBasis = '{width}px'; side.style.minWidth = '{width}px'; side.style.maxWidth = '{width}px' }})()"
    )
    await page.frames(3)
    await asyncio.sleep(0.4)


async def picture(page: Any, name: str) -> None:
    if os.environ.get("DISTORCH_UPDATE_PICTURES") == "1":
        await page.screenshot(IMAGES / f"{name}.png")


async def cpu_seconds(page: Any) -> float:
    """What the page's main thread has worked so far."""
    found = await page.send("Performance.getMetrics")
    return float(next(m["value"] for m in found["metrics"] if m["name"] == "TaskDuration"))


async def cost(page: Any, seconds: float = 10) -> tuple[float, float]:
    """Share of a core, and messages of ours in a second, while nobody touches anything."""
    await page.evaluate("window.told = 0")
    begin, at = await cpu_seconds(page), time.monotonic()
    await asyncio.sleep(seconds)
    spent, took = await cpu_seconds(page) - begin, time.monotonic() - at
    return spent / took, await page.evaluate("told") / took


def test_the_walk(server: ComfyServer) -> None:
    server.run(workflow())

    async def walk() -> None:
        async with open_page(1400, 1000) as page:
            await page.send("Performance.enable")
            await page.goto(f"http://127.0.0.1:{server.port}/")
            await page.wait_for(
                "window.app?.extensionManager && document.querySelector('.dt-badge')", 240
            )
            await page.evaluate("app.graph.clear()")
            await badges_are_in_the_menu(page)
            await page.evaluate(
                "['distorch.update', 'distorch.sample', 'distorch.run', 'distorch.report'].forEach((kind) =>"
                " app.api.addEventListener(kind, () => { window.told = (window.told ?? 0) + 1 }))"
            )
            closed = await cost(page)
            await page.evaluate("app.extensionManager.sidebarTab.toggleSidebarTab('distorch')")
            await page.wait_for("document.querySelectorAll('.dt-model').length === 2", 60)
            for theme in ("light", "dark"):
                await dressed(page, theme, 312)
                assert await page.evaluate(CONTRAST) >= 4.5, theme
                await picture(page, f"tab-{theme}")
            opened = await cost(page)
            print(
                f"closed {closed[0]:.2%} {closed[1]:.2f}/s, open {opened[0]:.2%} {opened[1]:.2f}/s"
            )
            assert opened[0] - closed[0] <= 0.01
            assert opened[1] <= 2
            await steer(page)
            await node(page)
            await names(page)
            wrong = [
                x
                for x in page.console
                if "EXCEPTION" in x or "distorch" in x.lower() or "Unhandled" in x
            ]
            assert wrong == []

    asyncio.run(walk())


async def badges_are_in_the_menu(page: Any) -> None:
    assert await page.evaluate("Boolean(document.querySelector('.dt-floating'))") is False
    # Nothing of ComfyUI's lies over them: each is what a click in its middle meets.
    await page.wait_for("""[...document.querySelectorAll('.dt-badge')].every((badge) => {
      const box = badge.getBoundingClientRect()
      const met = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2)
      return box.width > 0 && badge.contains(met)
    })""")
    await page.evaluate("document.querySelector('.dt-badge').focus()")
    await page.press("Tab")
    focus = "document.activeElement === document.querySelectorAll('.dt-badge')[1]"
    assert await page.evaluate(focus) is True, await page.evaluate(
        "document.activeElement.outerHTML.slice(0, 300)"
    )
    await page.press("Enter")
    await page.wait_for("document.querySelector('.dt-panel')")
    await page.press("Enter")
    await page.wait_for("!document.querySelector('.dt-panel')")


async def steer(page: Any) -> None:
    await dressed(page, "dark", 420)
    await page.evaluate(f"{CARD}.querySelector('.dt-fold summary').click()")
    await page.wait_for("document.querySelector('.dt-slider input')", 30)
    slider = "document.querySelector('.dt-slider input[data-device=\"sim:1\"]')"
    shown = "document.querySelector('.dt-steer .dt-strip').innerHTML"
    before = await page.evaluate(shown)
    await page.evaluate(f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input'))")
    await page.wait_for(f"{shown} !== {json.dumps(before)}")
    assert "sim:1" not in await page.evaluate("document.querySelector('.dt-string').value")
    await page.evaluate(f"{CARD}.scrollIntoView({{block: 'start'}})")
    await picture(page, "tab-by-hand")


async def node(page: Any) -> None:
    """The string in a loader: wrong, refused; then sliders, and the string written."""
    await page.evaluate("""
      (() => {
        app.graph.clear()
        window.loader = LiteGraph.createNode('UNETLoaderDisTorch2MultiGPU')
        app.graph.add(loader)
        loader.pos = [700, 120]
        const set = (name, value) => { loader.widgets.find((w) => w.name === name).value = value }
        set('unet_name', 'wan.safetensors')
        const string = loader.widgets.find((w) => w.name === 'expert_mode_allocations')
        string.value = 'sim:0,1.5xyz'
        string.callback(string.value)
      })()""")
    wrong = "loader.distorchPlan.element.querySelector('.dt-wrong').innerText"
    await page.wait_for(f"({wrong}).includes('^~~')", 30)
    string = "loader.widgets.find((w) => w.name === 'expert_mode_allocations')"
    await page.evaluate(f"{string}.value = '{STRING}'; {string}.callback({string}.value)")
    await page.wait_for(f"({wrong}) === ''")
    await page.evaluate("loader.distorchPlan.toggle(); app.canvas.centerOnNode(loader)")
    await page.wait_for("loader.distorchPlan.element.querySelector('.dt-slider')", 30)
    await page.evaluate(
        "(() => { const s = loader.distorchPlan.element.querySelectorAll('input[type=range]')[1]; s.value = 0;"
        " s.dispatchEvent(new Event('input')) })()"
    )
    place = "loader.distorchPlan.steer"
    await page.wait_for(f"!{place}.asking && {place}.text !== '{STRING}'")
    await page.evaluate(
        "loader.distorchPlan.element.querySelector('[data-key$=\"steer.write\"]').click()"
    )
    await page.wait_for(f"{string}.value === {place}.text")
    saved = await page.evaluate("JSON.stringify(loader.serialize().widgets_values)")
    assert "distorch" not in saved


async def names(page: Any) -> None:
    """Everything that can be used has a name for a screen reader."""
    tree = await page.send("Accessibility.getFullAXTree")
    roles = {"button", "switch", "slider", "textbox", "checkbox"}
    unnamed = []
    for one in tree["nodes"]:
        if one.get("role", {}).get("value") in roles and not one.get("name", {}).get("value"):
            found = await page.send("DOM.describeNode", backendNodeId=one["backendDOMNodeId"])
            text = json.dumps(found["node"].get("attributes", []))
            if "dt-" in text:
                unnamed.append(text)
    assert unnamed == []
