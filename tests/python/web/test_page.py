# SPDX-License-Identifier: Apache-2.0
"""The memory view in real Chromium, on a page that has ComfyUI's extension interface."""

from __future__ import annotations

import asyncio
import json
import pathlib
import re
import time
from collections.abc import Callable

import pytest
from chromium import CONTRAST, Page
from on_page import ROWS, drawn, on_page
from stand_in import GB, StandIn, StandInBackend, row


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Returns once `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the server was not asked in time"
        await asyncio.sleep(0.02)


def test_rows_and_bars_show_the_backends_bytes() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        shown = json.loads(await page.evaluate(
            "JSON.stringify([...document.querySelectorAll('.dt-model')].map(card => ["
            "Number(card.dataset.model), Object.fromEntries([...card.querySelectorAll('.dt-where li')]"
            ".map(li => [li.dataset.device, Number(li.dataset.bytes)]))]))"
        ))  # fmt: skip
        rows = sorted(server.backend.rows, key=lambda r: -r.total)
        assert shown == [[r.id, r.bytes] for r in rows]
        parts = json.loads(await page.evaluate(
            "JSON.stringify([...document.querySelectorAll('[data-device=\"cuda:0\"] .dt-bar rect')]"
            ".map(r => [r.dataset.part, Number(r.dataset.bytes)]))"
        ))  # fmt: skip
        assert sum(size for _, size in parts) == 24 * GB
        assert [name for name, _ in parts] == [
            "model-1", "model-3", "model-4", "tensors", "unused", "other", "free",
        ]  # fmt: skip
        name = await page.evaluate(
            "document.querySelector('[data-model=\"1\"] .dt-name').textContent"
        )
        assert name == "Wan2_2-T2V-A14B-HIGH"
        hover = await page.evaluate("document.querySelector('[data-model=\"1\"]').title")
        assert "File: diffusion_models/Wan2_2-T2V-A14B-HIGH.safetensors" in hover

    on_page(check)


def test_a_click_ejects_one_model_and_the_others_stay() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        await page.click('[data-key="eject-2"]')
        await page.wait_for("document.querySelector('[data-state=\"queued\"]')")
        assert server.backend.calls == [("eject", [2])]
        await server.send("distorch.report", server.backend.reports[1])
        await server.push()
        await page.wait_for(f"document.querySelector('[data-freed]')?.dataset.freed === '{6 * GB}'")
        text = await page.evaluate("document.querySelector('.dt-report').innerText")
        assert "Unload umt5-xxl-enc: freed 6.0 GB on GPU 1" in text
        assert "GPU 1\n21.5 GB → 15.5 GB" in text
        assert "RAM\n" in text
        spoken = await page.evaluate("document.querySelector('[role=status]').textContent")
        assert spoken == "Unload umt5-xxl-enc: freed 6.0 GB on GPU 1"
        assert await page.evaluate(ROWS) == 5
        # The rows are drawn in a frame of their own, after the report's line.
        tag = "document.querySelector('[data-model=\"2\"] .dt-tag')"
        await page.wait_for(tag)
        assert await page.evaluate(tag + ".textContent") == "offloaded"

    on_page(check)


def test_a_kept_model_in_ram_can_be_let_go_of_and_others_have_no_such_button() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        keys = "[...document.querySelectorAll('[data-key^=\"let-go\"]')].map(b => b.dataset.key)"
        assert sorted(await page.evaluate(keys)) == ["let-go-1", "let-go-5"]
        off = await page.evaluate("document.querySelector('[data-key=\"eject-5\"]')")
        assert off is None, "it is in RAM already"
        await page.click('[data-key="let-go-5"]')
        await until(lambda: server.backend.calls == [("let_go", [5])])

    on_page(check)


def test_the_switch_and_the_buttons_send_what_they_say() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        await page.click('[data-key="flag-4"]')
        for label in ("eject_flagged", "free_models", "free_all", "clear_caches"):
            await page.click(f'[data-key="{label}"]')
        await until(lambda: len(server.backend.calls) == 5)
        assert server.backend.calls == [
            ("flag", 4, True),
            ("eject", None),
            ("free", True, False),
            ("free", True, True),
            ("clear_cache", None),
        ]
        words = "document.querySelector('[data-model=\"3\"] .dt-actions').innerText"
        assert "only the node that holds it" in await page.evaluate(words)

    on_page(check)


def test_a_redraw_while_a_button_is_held_does_not_lose_the_click() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        await page.evaluate(
            "window.held = document.querySelector('[data-key=\"eject-2\"]');"
            "held.dispatchEvent(new PointerEvent('pointerdown', {bubbles: true}))"
        )
        server.backend.rows = server.backend.rows[:2]
        await server.push()
        await drawn(page, server)
        assert await page.evaluate("held.isConnected") is True
        assert await page.evaluate(ROWS) == 5
        await page.evaluate(
            "held.dispatchEvent(new PointerEvent('pointerup', {bubbles: true})); held.click()"
        )
        await page.wait_for(f"{ROWS} === 2")
        await until(lambda: bool(server.backend.calls))  # the click's request is under way
        assert server.backend.calls == [("eject", [2])]

    on_page(check)


def test_the_strip_is_in_bytes_and_shows_how_each_block_runs() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        strip = "document.querySelector('[data-strip=\"p-1\"]')"
        widths = json.loads(await page.evaluate(
            f"JSON.stringify([...{strip}.querySelectorAll('[data-block]')].map(r =>"
            " [r.dataset.how, Number(r.getAttribute('width')), Number(r.dataset.bytes)]))"
        ))  # fmt: skip
        assert [
            sum(how == h for h, _, _ in widths) for how in ("resident", "streamed", "migrated")
        ] == [14, 8, 18]
        slots = await page.evaluate(
            f"Number({strip}.querySelector('.dt-slots').getAttribute('width'))"
        )
        assert slots / widths[0][1] == pytest.approx(2 * GB / widths[0][2], rel=0.01)
        assert await page.evaluate(f"{strip}.querySelectorAll('.dt-hatched').length") == 8
        title = await page.evaluate(
            f"{strip}.querySelector('[data-how=streamed] title').textContent"
        )
        assert title == "blocks.32\n691 MB · RAM · streamed"
        rows = await page.evaluate("document.querySelector('.dt-placement .dt-rows').innerText")
        for words in (
            "GPU 0\t11.0 GB\t9.0 GB\t2.0 GB\tresident",
            "GPU 1\t12.0 GB\t12.0 GB\t–\tmigrated",
        ):
            assert words in rows
        text = await page.evaluate("document.querySelector('.dt-placement').innerText")
        assert "a step: predicted 1030 ms, measured 1084 ms" in text
        assert "is lowered to 11.00 GB" in await page.evaluate(
            "document.querySelector('.dt-note').innerText"
        )

    on_page(check)


def test_a_block_that_moved_flashes_and_one_that_waits_is_marked() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        state = server.backend.placements()
        block = state["placements"][0]["blocks"][0]
        block.update(device="cpu", how="streamed", waits="cuda:0")
        await server.send("distorch.update", state)
        changed = "[...document.querySelectorAll('.dt-changed')].map(r => r.dataset.block).join()"
        await page.wait_for(f"{changed} === 'blocks.0'")
        words = "document.querySelector('.dt-changed title').textContent"
        assert "waits for its place on GPU 0" in await page.evaluate(words)
        assert await page.evaluate("document.querySelectorAll('.dt-waits').length") == 1

    on_page(check)


def test_a_model_that_was_unloaded_is_not_called_streamed() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        state = server.backend.placements()
        state["placements"][0]["state"] = "released"
        await server.send("distorch.update", state)
        tags = "document.querySelector('[data-model=\"1\"]').innerText"
        await page.wait_for(f"{tags}.includes('in RAM, not loaded')")
        assert "streamed\n" not in await page.evaluate(
            "document.querySelector('.dt-rows').innerText"
        )

    on_page(check)


def test_sliders_give_the_string_and_what_comes_of_it() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        await page.click('[data-key="steer-1"] summary')
        slider = "document.querySelector('.dt-slider input[data-device=\"cuda:1\"]')"
        await page.wait_for(slider)
        streamed = "Number(document.querySelector('[data-streamed]').dataset.streamed)"
        before = await page.evaluate(streamed)
        await page.evaluate(
            f"{slider}.value = {4 * GB}; {slider}.dispatchEvent(new Event('input'))"
        )
        await page.wait_for(
            f"{streamed} > {before} - 1 && document.querySelector('.dt-string').value.includes('cuda:1,4gb')"
        )
        assert "cpu,*" in await page.evaluate("document.querySelector('.dt-string').value")
        await page.evaluate(
            "const e = document.querySelector('.dt-string'); e.value = 'cuda:0,1.5xyz;cpu,*'; e.dispatchEvent(new Event('input'))"
        )
        await page.wait_for(
            "document.querySelector('.dt-steer .dt-wrong pre')?.textContent.includes('^~~')"
        )
        font = "getComputedStyle(document.querySelector('.dt-string')).fontFamily"
        assert "mono" in await page.evaluate(font)
        assert (
            await page.evaluate("document.querySelector('.dt-string').getAttribute('aria-invalid')")
            == "true"
        )
        calls = [c for c in server.backend.calls if c[0] == "plan"]
        await server.push()  # a redraw must not close, move or empty it
        await drawn(page, server)
        assert (
            await page.evaluate("document.querySelector('.dt-string').value")
            == "cuda:0,1.5xyz;cpu,*"
        )
        assert [c for c in server.backend.calls if c[0] == "plan"] == calls

    on_page(check)


def test_reports_go_with_the_next_run() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        await page.click('[data-key="clear_caches"]')
        await until(lambda: bool(server.backend.reports))
        await server.send("distorch.report", server.backend.reports[1])
        await page.wait_for("document.querySelectorAll('.dt-report time').length === 1")
        run = server.backend.history(600, "b2")["runs"][0]
        await server.send("distorch.run", {**run, "prompt": "c3", "started": time.time() + 1})
        await page.wait_for("document.querySelectorAll('.dt-report').length === 0")

    on_page(check)


def test_eight_devices_fold_into_one_badge_with_a_list() -> None:
    backend = StandInBackend()
    views = backend.devices()["devices"]
    eight = [{**views[0], "device": f"cuda:{i}", "free": i * GB} for i in range(8)] + views[-1:]
    backend.devices = lambda: {"devices": eight}  # type: ignore[method-assign]

    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        await page.wait_for("document.querySelectorAll('.dt-badges > .dt-badge-box').length === 1")
        await page.click('[data-key="badge-all"]')
        await page.wait_for("!document.querySelector('.dt-badge-list').hidden")
        assert await page.evaluate("document.querySelectorAll('.dt-badge-row').length") == 8
        await page.press("Escape")
        assert await page.evaluate("document.querySelector('.dt-badge-list').hidden") is True
        over = await page.evaluate(
            "[...document.querySelectorAll('.dt-panel *')].filter(e => e.getBoundingClientRect().right >"
            " document.querySelector('aside').getBoundingClientRect().right + 1).length"
        )
        assert over == 0

    on_page(check, backend)


def test_at_312_pixels_no_cell_is_cut_off() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.evaluate("document.body.style.gridTemplateColumns = '56px 312px 1fr'")
        await page.wait_for(f"{ROWS} === 5")
        await page.wait_for("document.querySelector('.dt-rows')")
        cut = (
            "[...document.querySelectorAll('.dt-rows td, .dt-rows th, .dt-button')]"
            ".filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"
        )
        assert await page.evaluate(cut) == []

    on_page(check)


def test_colours_of_models_and_devices_are_never_the_same() -> None:
    async def check(page: Page, server: StandIn) -> None:
        same = await page.evaluate(
            "import('/extensions/DisTorch/lib/colours.js').then((c) => {"
            " const of = (f, n) => new Set(Array.from({length: n}, (_, i) => f(i)));"
            " const models = of((i) => c.modelColour(1000 + i), 10);"
            " const devices = of((i) => c.deviceColour(`cuda:${i}`), 8);"
            " return [models.size, devices.size, [...models].filter((m) => devices.has(m)).length] })"
        )
        assert same == [10, 8, 0]

    on_page(check)


def test_every_text_is_there_in_chinese() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.evaluate(
            "app.extensionManager.setting.get = (id) => id === 'Comfy.Locale' ? 'zh' : true"
        )
        await page.click("#tab-distorch")
        await page.click("#tab-distorch")
        await page.wait_for(f"{ROWS} === 5")
        await page.click('[data-key="steer-1"] summary')
        await page.wait_for("document.querySelector('.dt-slider')")
        text = await page.evaluate("document.querySelector('.dt-panel').innerText")
        for word in [
            "Models",
            "Devices",
            "Keep",
            "resident",
            "streamed",
            "peak",
            "layers",
            "Cap",
            "Slots",
            "kept",
            "steer",
        ]:
            assert not re.search(rf"\b{word}\b", text), word

    on_page(check)


def test_the_last_prompt_shows_what_its_nodes_needed() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for("document.querySelector('.dt-run')")
        text = "document.querySelector('.dt-run').innerText"
        assert "running" in await page.evaluate(text)
        run = server.backend.history(600, "a1")["runs"][0]
        await server.send("distorch.run", {**run, "status": "success"})
        await page.wait_for("document.querySelector('[data-prompt=\"a1\"]')")
        assert "done, 2:12 min" in await page.evaluate(text)
        assert "peak GPU 0 23.0 GB, GPU 1 18.0 GB" in await page.evaluate(text)
        sampler = "document.querySelector('.dt-nodes [data-node=\"7\"]')"
        assert (
            await page.evaluate(sampler + ".title") == "Loaded Wan2_2-T2V-A14B-HIGH: GPU 0 9.0 GB"
        )
        assert "+14.0 GB" in await page.evaluate(sampler + ".innerText"), "its own growth"
        assert "2:00 min" in await page.evaluate(sampler + ".innerText")

    on_page(check)


def test_a_peak_between_two_samples_is_drawn_and_counts() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        shown = "document.querySelector('.dt-device[data-device=\"cuda:1\"]')"
        await page.click('.dt-device[data-device="cuda:1"] summary')
        # The rows come before the timeline does: wait for what the history drew.
        await page.wait_for(f"{shown}.querySelectorAll('.dt-spikes').length === 1")
        figures = {"total": 24 * GB, "allocated": 0, "reserved": 0}
        sample = {"time": time.time(), "devices": {
            "cuda:1": {**figures, "used": 2 * GB, "peak": 24 * GB}}}  # fmt: skip
        await server.send("distorch.sample", sample)
        await page.wait_for(f"{shown}.innerText.includes('peak 24.0 GB')")
        strokes = await page.evaluate(f"{shown}.querySelector('.dt-spikes').getAttribute('d')")
        assert strokes.count("M") == 2

    on_page(check)


def test_everything_can_be_done_with_the_keyboard() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        await page.evaluate("document.querySelector('[data-key=\"flag-1\"]').focus()")
        await page.press("Tab")
        focused = "document.activeElement.dataset.key"
        assert await page.evaluate(focused) == "eject-1"
        await server.push()  # a redraw in between must not take the focus away
        await drawn(page, server)
        assert await page.evaluate(focused) == "eject-1"
        await page.press("Enter")
        await page.wait_for("document.querySelector('[data-state=\"queued\"]')")
        assert server.backend.calls == [("eject", [1])]
        unnamed = await page.evaluate(
            "[...document.querySelectorAll('.dt-panel button, .dt-panel input, .dt-badge, .dt-panel svg')]"
            ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim())).length"
        )
        assert unnamed == 0
        await page.evaluate("document.querySelector('[data-key=\"badge-cuda:0\"]').focus()")
        tip = "document.querySelector('#dt-tip-cuda-0').hidden"
        assert await page.evaluate(tip) is False
        await page.press("Escape")
        assert await page.evaluate(tip) is True

    on_page(check)


def test_each_badge_has_its_own_ten_largest_and_says_how_many_more() -> None:
    backend = StandInBackend()
    backend.rows = [row(i, f"m{i}", "lora", {"cuda:0": i << 20}, 2) for i in range(1, 14)]
    backend.rows.append(row(20, "other", "vae", {"cuda:1": GB}, 1))

    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for("document.querySelectorAll('.dt-badge').length === 2")
        lines = json.loads(await page.evaluate(
            "JSON.stringify([...document.querySelectorAll('#dt-tip-cuda-0 li')].map(x => x.textContent))"
        ))  # fmt: skip
        assert lines[0] == "m13 (lora, 13 MB, 2 layers)"
        assert lines[9:] == ["m4 (lora, 4 MB, 2 layers)", "and 3 more"]
        other = await page.evaluate("document.querySelector('#dt-tip-cuda-1 ul').textContent")
        assert other == "other (vae, 1.0 GB, 1 layer)"

    on_page(check, backend, tab=False)


def test_nothing_is_asked_for_while_nothing_shows_it() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        await page.evaluate("app.extensionManager.setting.set('DisTorch.badges', false)")
        await page.click("#tab-distorch")  # closes it
        await page.wait_for("!document.querySelector('.dt-panel')")
        await until(lambda: server.backend.watched[-1:] == [("page", "nothing")])
        page.requests.clear()
        server.backend.rows = server.backend.rows[:2]
        await server.push()
        await drawn(page, server)
        assert page.requests == []
        assert await page.evaluate("intervals") == 0, "nothing asks again and again"
        await page.click("#tab-distorch")
        await page.wait_for(f"{ROWS} === 2")
        assert {u.split("/api")[1].split("?")[0] for u in page.requests if "/api" in u} == {
            "/distorch/models", "/distorch/devices", "/distorch/placements", "/distorch/history",
            "/distorch/watch",
        }  # fmt: skip
        page.requests.clear()
        server.backend.rows = []
        await server.push()
        await page.wait_for(
            "document.querySelector('.dt-empty')?.textContent === 'No models are loaded.'"
        )
        assert page.requests == []

    on_page(check)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_of_both_themes(scheme: str, tmp_path: pathlib.Path) -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.theme(scheme)
        dark = json.dumps(scheme == "dark")
        await page.evaluate(f"document.body.classList.toggle('dark-theme', {dark})")
        await page.wait_for(f"{ROWS} === 5")
        await page.evaluate("document.querySelector('[data-key=\"badge-cuda:0\"]').focus()")
        await page.wait_for("!document.querySelector('#dt-tip-cuda-0').hidden")
        await page.screenshot(tmp_path / f"{scheme}.png")
        assert (tmp_path / f"{scheme}.png").stat().st_size > 20_000
        # Text must stand out: WCAG AA asks 4.5 for small text.
        ratio = await page.evaluate(CONTRAST)
        assert ratio >= 4.5

    on_page(check, height=1320)


def test_an_unfolded_device_says_what_it_does_and_who_holds_the_rest() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        more = "document.querySelector('.dt-device[data-device=\"cuda:{}\"] .dt-device-more')"
        for index in (0, 1):
            head = f"document.querySelector('[data-key=\"device-cuda:{index}-head\"]')"
            await page.evaluate(f"{head}.click()")
            await page.wait_for(more.format(index))
        text = await page.evaluate(f"{more.format(0)}.innerText")
        words = " ".join(text.split())
        for figure in ("load 37 %", "temperature 61 °C", "power 215 of 450 W"):
            assert figure in words
        assert "PCIe in, out 9.0 GB/s, 20 MB/s" in words
        assert "this ComfyUI, process 11 15.0 GB" in words
        assert "firefox, process 912 512 MB" in words
        assert "process 913 not known" in words
        other = await page.evaluate(f"{more.format(1)}.innerText")
        assert not {"load", "process"} & set(other.split()), "NVML does not know it"
        server.backend.activity["cuda:0"].update(
            load=None, power=None, pcie_sent=None, pcie_received=None, processes=None
        )
        await server.push()
        await page.wait_for(f"!{more.format(0)}.innerText.includes('load')")
        text = await page.evaluate(f"{more.format(0)}.innerText")
        assert "61 °C" in text
        assert not {"%", "PCIe"} & set(text.split()), "unknown is not nothing"

    on_page(check)


def test_the_server_is_told_what_the_page_shows() -> None:
    async def check(page: Page, server: StandIn) -> None:
        told = server.backend.watched
        await until(lambda: told == [("page", "badges")])
        await page.click("#tab-distorch")
        await until(lambda: told[1:] == [("page", "tab")])
        await page.click("#tab-distorch")
        await until(lambda: told[2:] == [("page", "badges")])
        await page.evaluate("app.extensionManager.setting.set('DisTorch.badges', false)")
        await until(lambda: told[3:] == [("page", "nothing")])

    on_page(check, tab=False)
