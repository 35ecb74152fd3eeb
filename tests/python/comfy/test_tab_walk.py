# SPDX-License-Identifier: Apache-2.0
"""A walk through the tab and the nodes in real ComfyUI with its front end, with three devices and with eight: `make walk`.
With DISTORCH_UPDATE_PICTURES=1 it makes the pictures of docs/images anew.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pathlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import torch
from chromium import CONTRAST, open_page
from comfy_harness import ComfyServer, Workflow, models, versions

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

IMAGES = pathlib.Path(__file__).resolve().parents[3] / "docs/images"
GB = 2**30
CARD = "[...document.querySelectorAll('.dt-model')].find((e) => e.innerText.includes('wan_long'))"
# Percentages that are ratios, and of all devices but the last.
STRINGS = {
    3: "sim:0,30%;sim:1,20%;cpu,60%",
    8: "sim:0,30%;" + ";".join(f"sim:{i},7%" for i in range(1, 8)) + ";cpu,*",
}
NOTE = "taken as ratios"
CAPACITY = 2 * GB
KINDS = ("distorch.update", "distorch.sample", "distorch.run", "distorch.report")

Check = Callable[[Any], Awaitable[None]]


@pytest.fixture(scope="module", params=[3, 8])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A server with so many devices, on which a model of ours and one of the core have run."""
    base = tmp_path_factory.mktemp(f"walk-{request.param}")
    models.write_all(base / "models")
    wan = models.wan_shapes(dim=512, blocks=20, ffn=1024)
    models.write(base / "models/diffusion_models/wan_long.safetensors", wan, torch.float32, seed=99)
    made = ComfyServer(versions(dynamic=False)[0], base, capacities=(CAPACITY,) * request.param)
    made.devices = request.param  # type: ignore[attr-defined]
    made.request("/settings/Comfy.TutorialCompleted", True)  # else templates cover the page
    made.run(workflow(request.param))
    yield made
    made.stop()


def workflow(devices: int) -> Workflow:
    w = Workflow()
    ours = w.add(
        "UNETLoaderDisTorch2MultiGPU", unet_name="wan_long.safetensors", weight_dtype="default",
        compute_device="sim:0", virtual_vram_gb=0.0, donor_device="cpu",
        expert_mode_allocations=STRINGS[devices], eject_models=False,
    )  # fmt: skip
    w.save(w.sample(ours, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8), steps=4), "wan")
    clip = w.add("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion")
    w.save(w.add("CLIPTextEncode", clip=clip, text="a cat"), "prompt")
    return w


def on_page(server: ComfyServer, check: Check, *, wrong: bool = True) -> None:
    """Runs `check` on the front end with an empty canvas; `wrong`: the console must say nothing of ours."""

    async def run() -> None:
        async with open_page(1500, 1100) as page:
            # Time of the processor, not of the clock: a busy machine is not the tab's fault.
            await page.send("Performance.enable", timeDomain="threadTicks")
            await fresh(page, server)
            await check(page)
            said = ("EXCEPTION", "distorch", "Unhandled", "already registered")
            bad = [x for x in page.console if any(s.lower() in x.lower() for s in said)]
            assert not wrong or bad == []

    asyncio.run(run())


async def fresh(page: Any, server: ComfyServer) -> None:
    await page.send("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    await page.wait_for("window.app?.extensionManager && document.querySelector('.dt-badge')", 240)
    await page.evaluate("app.graph.clear()")
    listen = "() => { window.told = (window.told ?? 0) + 1 }"
    await page.evaluate(f"{json.dumps(KINDS)}.forEach((kind) => app.api.addEventListener(kind, {listen}))")  # fmt: skip


async def open_tab(page: Any) -> None:
    # Again and again: a front end that has not quite started closes it.
    await page.wait_for(
        """(() => {
      const side = app.extensionManager.sidebarTab
      if (side.activeSidebarTabId !== 'distorch') side.toggleSidebarTab('distorch')
      return document.querySelectorAll('.dt-model').length === 2
    })()""",
        60,
    )


async def theme(page: Any, name: str) -> None:
    await page.evaluate(f"app.extensionManager.setting.set('Comfy.ColorPalette', '{name}')")
    dark = json.dumps(name == "dark")
    await page.wait_for(f"document.documentElement.matches('.dark-theme') === {dark}")
    await page.frames(3)
    await asyncio.sleep(0.4)


async def sidebar(page: Any, width: int) -> None:
    await page.evaluate(
        "(() => { const side = document.querySelector('.side-bar-panel');"
        f" side.style.flexBasis = '{width}px'; side.style.minWidth = '{width}px'; side.style.maxWidth = '{width}px' }})()"
    )
    await page.frames(3)
    await asyncio.sleep(0.4)


async def picture(page: Any, name: str, *selectors: str, room: int = 0, most: int = 2000) -> None:
    """Of the box around some elements, as tall as `most` at most."""
    if os.environ.get("DISTORCH_UPDATE_PICTURES") != "1":
        return
    box = await page.evaluate(
        f"(() => {{ const r = {json.dumps(selectors)}.map((s) => document.querySelector(s).getBoundingClientRect());"
        " const [x, y] = [Math.min(...r.map((b) => b.left)), Math.min(...r.map((b) => b.top))];"
        " return [x, y, Math.max(...r.map((b) => b.right)) - x, Math.min(innerHeight, Math.max(...r.map((b) => b.bottom))) - y] })()"
    )
    clip = {"x": max(0, box[0] - room), "y": max(0, box[1] - room), "scale": 1}
    clip |= {"width": box[2] + 2 * room, "height": min(most, box[3] + 2 * room)}
    found = await page.send("Page.captureScreenshot", format="png", clip=clip)
    (IMAGES / f"{name}.png").write_bytes(base64.b64decode(found["data"]))


async def cost(page: Any, seconds: float = 10) -> tuple[float, float]:
    """Share of a core, and messages of ours in a second, while nobody touches anything."""

    async def worked() -> float:
        found = await page.send("Performance.getMetrics")
        return float(next(m["value"] for m in found["metrics"] if m["name"] == "TaskDuration"))

    await page.evaluate("window.told = 0")
    begin, at = await worked(), time.monotonic()
    await asyncio.sleep(seconds)
    spent, took = await worked() - begin, time.monotonic() - at
    return spent / took, await page.evaluate("told") / took


def test_the_tab_costs_little_open_and_nothing_closed(server: ComfyServer) -> None:
    async def check(page: Any) -> None:
        await asyncio.sleep(3)  # the front end itself settles
        toggle = "app.extensionManager.sidebarTab.toggleSidebarTab('distorch')"
        spent, messages = [], []
        for _ in range(3):
            closed = await cost(page)
            await open_tab(page)
            await asyncio.sleep(2)
            opened = await cost(page)
            await page.evaluate(toggle)
            await asyncio.sleep(2)
            print(
                f"closed {closed[0]:.2%} {closed[1]:.2f}/s, open {opened[0]:.2%} {opened[1]:.2f}/s"
            )
            assert closed[1] == 0, "no message while nothing of it is shown"
            spent.append((closed[0], opened[0]))
            messages.append(opened[1])
        # Other work on the machine only adds: the least of each is compared.
        least_closed, least_open = map(min, zip(*spent, strict=True))
        assert least_open - least_closed <= 0.01
        assert max(messages) <= 2

    on_page(server, check)


def test_the_tab_in_both_themes_and_widths(server: ComfyServer) -> None:
    async def check(page: Any) -> None:
        await open_tab(page)
        await open_devices(page)
        for name in ("light", "dark"):
            await theme(page, name)
            for width in (312, 760):
                await sidebar(page, width)
                await page.evaluate("document.querySelector('.dt-panel').scrollTop = 0")
                assert await page.evaluate(CONTRAST) >= 4.5, name
                assert await page.evaluate(TOO_WIDE) == [], width
                form = f"tab-{server.devices}-{width}-{name}"  # type: ignore[attr-defined]
                await picture(page, form, ".dt-panel")
        if server.devices == 3:  # type: ignore[attr-defined]
            amber = await page.evaluate("document.querySelector('.dt-note').innerText")
            assert NOTE in amber
        in_ram = "[...document.querySelectorAll('.dt-model')].find((e) => e.innerText.includes('clip_l')).innerText"
        assert "Move off the GPU" not in await page.evaluate(in_ram)
        assert "It is in RAM already" in await page.evaluate(in_ram)
        assert "Move off the GPU" in await page.evaluate(f"{CARD}.innerText")
        await names(page)

    on_page(server, check)


# Elements of the tab that are wider than it.
TOO_WIDE = """(() => {
  const panel = document.querySelector('.dt-panel')
  const right = panel.getBoundingClientRect().right
  return [...panel.querySelectorAll('*')].filter((e) => !e.closest('svg, pre, .dt-hidden') && e.getBoundingClientRect().right > right + 1)
    .map((e) => e.outerHTML.slice(0, 120))
})()"""


async def open_devices(page: Any) -> None:
    await page.evaluate("document.querySelector('[data-key=\"device-sim:0-head\"]').click()")
    await page.wait_for("document.querySelector('.dt-device-more')")


def test_badges_take_their_place_and_give_way(server: ComfyServer) -> None:
    async def check(page: Any) -> None:
        assert await page.evaluate("Boolean(document.querySelector('.dt-floating'))") is False
        # Nothing of ComfyUI's lies over them: each is what a click in its middle meets.
        await page.wait_for("""[...document.querySelectorAll('.dt-badge')].filter((b) => b.offsetParent).every((badge) => {
          const box = badge.getBoundingClientRect()
          const met = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2)
          return box.width > 0 && badge.contains(met)
        })""")
        await page.evaluate("document.querySelector('.dt-badge').focus()")
        if server.devices > 3:  # type: ignore[attr-defined]
            await page.press("Enter")
            rows = "document.querySelectorAll('#dt-badge-list:not([hidden]) li').length"
            await page.wait_for(f"{rows} === {server.devices}")  # type: ignore[attr-defined]
            await picture(page, "badges-8", ".dt-badges", "#dt-badge-list", room=8)
            await page.press("Escape")
            await page.wait_for(f"{rows} === 0")
            return
        await page.press("Tab")
        focus = "document.activeElement === document.querySelectorAll('.dt-badge')[1]"
        assert await page.evaluate(focus) is True
        await page.wait_for("document.querySelector('.dt-tip:not([hidden])')")
        await picture(page, "badges-3", ".dt-badges", ".dt-tip:not([hidden])", room=8)
        await page.press("Enter")
        await page.wait_for("document.querySelector('section.dt-panel')")
        await page.press("Enter")
        await page.wait_for("!document.querySelector('section.dt-panel')")

    on_page(server, check)


def test_placing_by_hand(server: ComfyServer) -> None:
    async def check(page: Any) -> None:
        await theme(page, "dark")
        await open_tab(page)
        await sidebar(page, 420)
        await page.evaluate(f"{CARD}.querySelector('.dt-fold summary').click()")
        await page.wait_for("document.querySelector('.dt-slider input')", 30)
        slider = "document.querySelector('.dt-slider input[data-device=\"sim:1\"]')"
        shown = "document.querySelector('.dt-steer .dt-strip').innerHTML"
        before = await page.evaluate(shown)
        await page.evaluate(f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input'))")
        await page.wait_for(f"{shown} !== {json.dumps(before)}")
        assert "sim:1," not in await page.evaluate("document.querySelector('.dt-string').value")
        await page.evaluate(f"{CARD}.scrollIntoView({{block: 'start'}})")
        await picture(page, f"by-hand-{server.devices}", ".dt-panel")  # type: ignore[attr-defined]

    on_page(server, check)


def test_from_a_model_to_its_node_and_back(server: ComfyServer) -> None:
    prompt = json.dumps(workflow(server.devices))  # type: ignore[attr-defined]

    async def check(page: Any) -> None:
        await theme(page, "dark")
        await page.evaluate(f"app.loadApiJson({prompt}, 'walk')")
        await open_tab(page)
        await sidebar(page, 420)
        await page.evaluate("app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
        loader = "app.graph._nodes.find((n) => n.type === 'UNETLoaderDisTorch2MultiGPU')"
        await page.evaluate(
            f"app.canvas.ds.scale = 1; app.canvas.centerOnNode({loader}); app.canvas.ds.offset[0] += 130"
        )
        await page.frames(5)
        await picture(page, f"comfyui-{server.devices}", "body")  # type: ignore[attr-defined]
        name = f"{CARD}.querySelector('.dt-name')"
        await page.wait_for(f"{name}.matches('button')")
        await page.evaluate(f"{name}.click()")
        selected = "Object.values(app.canvas.selected_nodes ?? {}).map((n) => n.type).join()"
        await page.wait_for(f"{selected} === 'UNETLoaderDisTorch2MultiGPU'")
        await page.evaluate("app.extensionManager.sidebarTab.toggleSidebarTab('distorch')")
        await page.wait_for("!document.querySelector('section.dt-panel')")
        items = (
            "app.extensions.find((e) => e.name === 'DisTorch.MemoryView')"
            ".getNodeMenuItems(Object.values(app.canvas.selected_nodes)[0])"
        )
        assert await page.evaluate(f"{items}.map((i) => i.content)") == ["Show in the DisTorch tab"]
        await page.evaluate(f"{items}[0].callback()")
        await page.wait_for(
            "document.querySelector('.dt-found')?.innerText.includes('wan_long')", 30
        )

    on_page(server, check)


WAN_LOADER = """
  (() => {
    app.graph.clear()
    window.loader = LiteGraph.createNode('UNETLoaderDisTorch2MultiGPU')
    app.graph.add(loader)
    loader.pos = [700, 120]
    window.widget = (name) => loader.widgets.find((w) => w.name === name)
    widget('unet_name').value = 'wan_long.safetensors'
    window.string = widget('expert_mode_allocations')
    app.canvas.centerOnNode(loader)
  })()"""


def test_a_wrong_string_is_refused_where_it_is_typed(server: ComfyServer) -> None:
    async def check(page: Any) -> None:
        await theme(page, "dark")
        await page.evaluate(WAN_LOADER)
        # The box that the front end opens over the canvas: fixed width, and checked while it is typed into.
        await page.evaluate(
            "app.canvas.constructor.active_canvas ??= app.canvas; string.onClick({ e: new PointerEvent('pointerup', { clientX: 800, clientY: 300 }), node: loader, canvas: app.canvas })"
        )
        box = "document.querySelector('.graphdialog .value')"
        assert "mono" in await page.evaluate(f"getComputedStyle({box}).fontFamily")
        await page.evaluate(
            f"{box}.value = 'sim:0,1.5xyz'; {box}.dispatchEvent(new Event('input'))"
        )
        wrong = "loader.distorchPlan.element.querySelector('.dt-wrong').innerText"
        await page.wait_for(f"({wrong}).includes('^~~')", 30)
        await page.wait_for(f"{box}.getAttribute('aria-invalid') === 'true'")
        assert "unknown unit 'xyz'" in await page.evaluate(wrong)
        await picture(
            page, "string-wrong", "#graph-canvas-container, canvas#graph-canvas", most=900
        )
        await page.evaluate("app.canvas.prompt_box.close()")
        text = STRINGS[server.devices]  # type: ignore[attr-defined]
        await page.evaluate(f"string.value = {json.dumps(text)}; string.callback(string.value)")
        await page.wait_for(f"({wrong}) === ''")
        await page.evaluate("loader.distorchPlan.toggle()")
        await page.wait_for("loader.distorchPlan.element.querySelector('.dt-slider')", 30)
        await page.evaluate(
            "(() => { const s = loader.distorchPlan.element.querySelectorAll('input[type=range]')[1]; s.value = 0;"
            " s.dispatchEvent(new Event('input')) })()"
        )
        place = "loader.distorchPlan.steer"
        await page.wait_for(f"!{place}.asking && {place}.text !== {json.dumps(text)}")
        await page.evaluate(
            "loader.distorchPlan.element.querySelector('[data-key$=\"steer.write\"]').click()"
        )
        await page.wait_for(f"string.value === {place}.text")
        saved = await page.evaluate("JSON.stringify(loader.serialize().widgets_values)")
        assert "distorch" not in saved
        await names(page)

    on_page(server, check)


def test_nodes_2_has_the_string_in_letters_of_one_width(server: ComfyServer) -> None:
    async def check(page: Any) -> None:
        await page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
        await page.evaluate(WAN_LOADER)
        field = "document.querySelector('input[aria-label=\"expert_mode_allocations\"]')"
        await page.wait_for(field, 30)
        assert "mono" in await page.evaluate(f"getComputedStyle({field}).fontFamily")
        await page.evaluate(
            f"(() => {{ const f = {field}; Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(f, 'sim:0,1.5xyz');"
            " f.dispatchEvent(new Event('input', { bubbles: true })) })()"
        )
        await page.wait_for("[...document.querySelectorAll('.dt-wrong pre')].some((e) => e.offsetParent && e.innerText.includes('^~~'))", 30)  # fmt: skip
        await picture(page, "nodes-2", "[data-node-id]", room=10, most=800)
        await page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")

    on_page(server, check)


def test_the_plan_node_draws_what_it_found(server: ComfyServer) -> None:
    devices = server.devices  # type: ignore[attr-defined]

    async def plan(page: Any, text: str, other: str, width: int) -> None:
        await page.evaluate(
            """
            (() => {
              app.graph.clear()
              window.plan = LiteGraph.createNode('DisTorchPlan')
              app.graph.add(plan)
              plan.setSize([WIDTH, plan.size[1]])
              const set = (name, value) => { plan.widgets.find((w) => w.name === name).value = value }
              set('file', 'diffusion_models/wan_long.safetensors')
              set('compute_device', 'sim:0')
              set('expert_mode_allocations', TEXT)
              set('compare_with', OTHER)
              app.queuePrompt(0)
            })()""".replace("WIDTH", str(width))
            .replace("TEXT", json.dumps(text))
            .replace("OTHER", json.dumps(other))
        )
        count = 2 if other else 1
        await page.wait_for(
            f"plan.distorchPlans?.element.querySelectorAll('.dt-plan').length === {count}", 60
        )
        await asyncio.sleep(1)
        await page.evaluate("app.canvas.ds.scale = 1; app.canvas.centerOnNode(plan)")
        await page.frames(5)
        await asyncio.sleep(0.5)

    async def check(page: Any) -> None:
        gone = f"sim:0,30%;sim:1,100mb;sim:{devices},50mb;cpu,*"
        for name in ("light", "dark"):
            await theme(page, name)
            await plan(page, STRINGS[devices], gone, 760)
            amber = await page.evaluate(
                "[...plan.distorchPlans.element.querySelectorAll('.dt-note')].map((e) => e.innerText).join('|')"
            )
            assert devices == 8 or NOTE in amber
            assert f"not on this machine: sim:{devices}" in amber
            await picture(page, f"plan-{devices}-wide-{name}", ".dt-plans", room=12)
            await plan(page, STRINGS[devices], "", 312)
            wide = "plan.distorchPlans.body.scrollWidth > plan.distorchPlans.body.clientWidth + 1"
            assert await page.evaluate(wide) is False
            await picture(page, f"plan-{devices}-narrow-{name}", ".dt-plans", room=12)
        text = "plan.distorchPlans.element.querySelector('details pre').textContent"
        assert "Final Device/Layer Assignments" in await page.evaluate(text)
        saved = await page.evaluate("JSON.stringify(plan.serialize().widgets_values)")
        assert "Assignments" not in saved
        await names(page)

    on_page(server, check)


def test_the_tab_in_chinese(server: ComfyServer) -> None:
    server.run(workflow(server.devices))  # type: ignore[attr-defined]  # what another test has run let models go

    async def check(page: Any) -> None:
        await page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'zh')")
        try:
            await fresh(page, server)
            await open_tab(page)
            await theme(page, "dark")
            await sidebar(page, 312)
            text = await page.evaluate("document.querySelector('.dt-panel').innerText")
            words = set(re.findall(r"[A-Za-z]{3,}", text))
            assert words <= {"SIM", "GPU", "cpu", "sim", "wan", "long", "clip", "Simulated", "accelerator",
                             "KSampler", "UNETLoader", "MultiGPU", "CLIPLoader", "CLIPTextEncode"} | {
                *re.findall(r"[A-Za-z]{3,}", " ".join(workflow(3)[k]["class_type"] for k in workflow(3)))}, words  # fmt: skip
            if server.devices == 3:  # type: ignore[attr-defined]
                note = await page.evaluate("document.querySelector('.dt-note').innerText")
                assert note.startswith("百分比之和为 110%")
            await page.evaluate(WAN_LOADER)
            await page.evaluate("string.value = 'sim:0,1.5xyz'; string.callback(string.value)")
            wrong = "loader.distorchPlan?.element.querySelector('.dt-wrong')?.innerText"
            await page.wait_for(f"({wrong})?.includes('未知单位')", 30)
            tip = "loader.constructor.nodeData.input.optional.virtual_vram_gb[1].tooltip"
            assert re.search("[\u4e00-\u9fff]", await page.evaluate(tip))
            await picture(page, f"tab-{server.devices}-chinese", ".dt-panel")  # type: ignore[attr-defined]
        finally:
            await page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'en')")

    on_page(server, check)


def test_help_pages_fit_the_panel(server: ComfyServer) -> None:
    async def check(page: Any) -> None:
        stores = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s"
        await page.evaluate(
            "app.extensionManager.setting.set('Comfy.NodeLibrary.NewDesign', false)"
        )
        await page.evaluate("app.extensionManager.sidebarTab.toggleSidebarTab('node-library')")
        await page.wait_for(f"{stores}.get('nodeHelp')", 30)
        for node in ("CheckpointLoaderAdvancedDisTorch2MultiGPU", "DisTorchPlan"):
            await page.evaluate(
                f"{stores}.get('nodeHelp').openHelp({stores}.get('nodeDef').nodeDefsByName['{node}'])"
            )
            body = "document.querySelector('.node-help-content')"
            await page.wait_for(f"{body}?.innerText.includes('Inputs')", 30)
            await page.wait_for(f"{body}.innerText.replace(/ /g, '').includes('{node}')", 30)
            await page.frames(3)
            sizes = await page.evaluate(f"[{body}.scrollWidth, {body}.clientWidth]")
            assert sizes[0] <= sizes[1] < 460, (node, sizes)
        await picture(page, "help-plan", ".side-bar-panel", most=1000)
        await page.evaluate("app.extensionManager.setting.set('Comfy.NodeLibrary.NewDesign', true)")

    on_page(server, check)


async def names(page: Any) -> None:
    """Everything that can be used has a name for a screen reader."""
    tree = await page.send("Accessibility.getFullAXTree")
    roles = {"button", "switch", "slider", "textbox", "checkbox", "img", "table", "group"}
    unnamed = []
    for one in tree["nodes"]:
        if one.get("role", {}).get("value") in roles and not one.get("name", {}).get("value"):
            found = await page.send("DOM.describeNode", backendNodeId=one["backendDOMNodeId"])
            text = json.dumps(found["node"].get("attributes", []))
            if "dt-" in text:
                unnamed.append(text)
    assert unnamed == []
