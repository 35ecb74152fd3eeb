# SPDX-License-Identifier: Apache-2.0
"""How the page follows what it is told: nothing is drawn anew that stays, nothing old comes after new."""

from __future__ import annotations

from chromium import Page
from on_page import ROWS, drawn, on_page
from stand_in import StandIn, StandInBackend

STATUS = "document.querySelector('[role=status]').innerText"


def test_what_stays_the_same_is_not_drawn_anew() -> None:
    """A screen reader would read it again, a hover text would close."""

    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        await page.click('[data-key="clear_caches"]')
        await page.wait_for("document.querySelector('.dt-report')")
        await page.evaluate("document.querySelector('[data-key=\"badge-cuda:0\"]').focus()")
        await page.evaluate("""
          window.kept = [...document.querySelectorAll('.dt-panel li, .dt-panel button, .dt-strip rect, .dt-badge, .dt-tip')]
          window.said = 0
          new MutationObserver((changes) => { said += changes.length })
            .observe(document.querySelector('[role=status]'), { childList: true, subtree: true, characterData: true })
          window.focused = 0
          document.addEventListener('focusin', () => { focused += 1 })
          window.drawn = 0
          new MutationObserver((changes) => { window.drawn += 1 })
            .observe(document.querySelector('.dt-body'), { childList: true, subtree: true, characterData: true, attributes: true })
        """)
        old = server.backend.rows[3]
        object.__setattr__(old, "bytes", {"cuda:0": 2**30})
        await server.push()
        shown = 'document.querySelector(\'[data-model="4"] [data-device="cuda:0"]\').textContent'
        await page.wait_for(f"{shown} === 'GPU 0 1.0 GB'")
        assert await page.evaluate("kept.filter((one) => !one.isConnected).length") == 0
        assert await page.evaluate("[kept.length > 60, said, focused].join()") == "true,0,0"
        assert await page.evaluate("drawn") > 0
        focus = "document.activeElement.dataset.key"
        assert await page.evaluate(focus) == "badge-cuda:0"
        assert await page.evaluate("document.querySelector('#dt-tip-cuda-0').hidden") is False

    on_page(check)


def test_rows_come_go_and_change_places() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        shown = "[...document.querySelectorAll('.dt-model')].map((e) => e.dataset.model).join()"
        assert await page.evaluate(shown) == "1,2,5,3,4"
        await page.evaluate("document.querySelector('[data-key=\"eject-4\"]').focus()")
        rows = server.backend.rows
        object.__setattr__(rows[3], "bytes", {"cuda:0": 20 * 2**30})
        server.backend.rows = [rows[4], rows[3], rows[1], rows[2]]
        await server.push()
        await page.wait_for(f"{shown} === '4,2,5,3'")
        assert await page.evaluate("document.activeElement.dataset.key") == "eject-4"
        await page.press("Enter")
        await page.wait_for(f"{STATUS}.includes('about to be done')")
        assert server.backend.calls == [("eject", [4])]
        server.backend.rows = []
        await server.push()
        await page.wait_for(f"{ROWS} === 0")

    on_page(check)


def test_a_strip_is_drawn_again_only_when_a_block_moves() -> None:
    backend = StandInBackend()
    placed = backend.placements()["placements"]
    backend.placements = lambda: {"placements": placed}

    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for("document.querySelectorAll('.dt-strip [data-block]').length === 40")
        await page.evaluate("""
          window.drawn = 0
          new MutationObserver((changes) => { window.drawn += changes.length })
            .observe(document.querySelector('.dt-strip'), { childList: true, subtree: true, attributes: true })
        """)
        placed[0]["measured_step_ms"] = 7.25
        await server.push()
        await page.wait_for(
            "document.querySelector('.dt-placement').innerText.includes('measured 7.3 ms')"
        )
        assert await page.evaluate("drawn") == 0
        placed[0]["blocks"][0] = {**placed[0]["blocks"][0], "device": "cpu", "how": "streamed"}
        await server.push()
        await page.wait_for(
            "document.querySelector('[data-block=\"blocks.0\"]').dataset.how === 'streamed'"
        )
        assert await page.evaluate("document.querySelectorAll('.dt-hatched').length") == 9
        assert (
            await page.evaluate("document.querySelectorAll('.dt-strip [data-block]').length") == 40
        )
        title = await page.evaluate(
            "document.querySelector('[data-block=\"blocks.0\"] title').textContent"
        )
        assert title == "blocks.0\n691 MB · RAM · streamed"

    on_page(check, backend)


def test_an_update_without_blocks_leaves_them_and_one_of_an_unknown_placement_asks() -> None:
    backend = StandInBackend()
    placed = backend.placements()["placements"]
    backend.placements = lambda: {"placements": placed}

    async def check(page: Page, server: StandIn) -> None:
        blocks = "document.querySelectorAll('.dt-strip [data-block]').length"
        await page.wait_for(f"{blocks} === 40")
        await page.wait_for("document.querySelector('.dt-run')")  # what was asked for is here
        page.requests.clear()
        short = {**placed[0], "measured_step_ms": 7.25}
        del short["blocks"]
        await server.send("distorch.update", {"placements": [short]})
        text = "document.querySelector('.dt-placement').innerText"
        await page.wait_for(f"{text}.includes('measured 7.3 ms')")
        assert await page.evaluate(blocks) == 40
        assert page.requests == []
        placed.append({**placed[0], "key": 2, "model": 2})
        await server.send(
            "distorch.update", {"placements": [short, {**short, "key": 2, "model": 2}]}
        )
        await page.wait_for(f"{blocks} === 80")

    on_page(check, backend)


def test_an_answer_that_is_late_does_not_undo_what_came_after_it() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.evaluate("app.extensionManager.setting.set('DisTorch.badges', false)")
        await server.push()  # makes the page's state stale
        await drawn(page, server)
        await page.evaluate("""
          window.answers = 0
          window.held = new Promise((release) => { window.release = release })
          const real = window.fetch
          window.fetch = async (...args) => {
            const answer = await real(...args)
            answers += args[1]?.method === 'POST' ? 0 : 1 // what it watches is told beside
            await held
            return answer
          }
        """)
        await page.click("#tab-distorch")
        await page.wait_for("answers === 4")
        server.backend.rows = server.backend.rows[:2]
        await server.push()
        await page.wait_for(f"{ROWS} === 2")
        await page.evaluate("release()")
        await page.wait_for("document.querySelector('.dt-run')")  # the history was taken
        await page.frames(2)
        assert await page.evaluate(ROWS) == 2

    on_page(check, tab=False)


def test_a_click_that_reaches_no_server_says_so() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        await page.evaluate("window.fetch = async () => { throw new TypeError('no route') }")
        await page.click('[data-key="eject-2"]')
        await page.wait_for(
            f"{STATUS} === 'Unload umt5-xxl-enc: not done. The server did not answer: no route'"
        )

    on_page(check)


def test_that_there_is_nothing_to_do_is_said_each_time() -> None:
    backend = StandInBackend()
    nothing = {"ticket": 0, "when": "never", "will": "nothing is unloaded", "models": []}
    backend.eject = lambda ids, let_go: nothing

    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        for label, text in (
            ("eject_flagged", "Nothing to do: no model in use is flagged"),
            ("clear_caches", "Clear caches: about to be done"),
            ("eject_flagged", "Nothing to do: no model in use is flagged"),
        ):
            await page.click(f'[data-key="{label}"]')
            await page.wait_for(f"{STATUS} === '{text}'")

    on_page(check, backend)


def test_a_free_says_what_stays_and_how_to_let_go_of_it() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(f"{ROWS} === 5")
        kept = [{"name": "WAN22 (wan.safetensors)", "why": "keep_loaded is on",
                 "let_go": "switch keep_loaded off"}]  # fmt: skip
        report = {"ticket": 9, "kind": "free", "state": "done", "asked": 1, "freed": {},
                  "freed_total": 0, "details": {"kept": kept * 5}, "error": ""}  # fmt: skip
        await server.send("distorch.report", report)
        await page.wait_for(f"{STATUS}.includes('nothing to free')")
        text = await page.evaluate(STATUS)
        text = await page.evaluate("document.querySelector('.dt-report').innerText")
        assert text.count("WAN22 (wan.safetensors) stays, because it is kept. To let go of it") == 3
        assert text.endswith("and 2 more")

    on_page(check)


def test_a_wrong_clock_of_the_browsers_machine_does_not_spoil_ages_and_timelines() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.evaluate("app.extensionManager.setting.set('DisTorch.badges', false)")
        await server.push()
        await drawn(page, server)
        await page.evaluate("{ const real = Date.now; Date.now = () => real() + 7200000 }")
        await page.click("#tab-distorch")
        facts = "document.querySelector('[data-model=\"1\"] .dt-small').textContent"
        await page.wait_for(f"{facts}.includes(' · 2m ago')")
        await page.click('.dt-device[data-device="cuda:0"] summary')
        await page.wait_for("document.querySelector('.dt-timeline')")
        words = "document.querySelector('.dt-timeline').getAttribute('aria-label')"
        assert await page.evaluate(words) == "GPU 0: peak 23.6 GB · average 10.7 GB"

    on_page(check, tab=False)
