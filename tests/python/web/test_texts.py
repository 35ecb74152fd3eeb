# SPDX-License-Identifier: Apache-2.0
"""English and Chinese from one table: what the page says, and what the server says in English."""

from __future__ import annotations

import json
import pathlib
import re

from chromium import Page
from on_page import ROWS, on_page
from stand_in import GB, StandIn, StandInBackend, checks

from distorch.allocation import (
    AllocationError,
    Block,
    Device,
    Options,
    PlanError,
    make_plan,
    parse,
)

ROOT = pathlib.Path(__file__).resolve().parents[3]
TEXTS: dict[str, list[str]] = json.loads((ROOT / "web/texts.json").read_text(encoding="utf-8"))
MB = 2**20
TABLE = [
    Device("cuda:0", 4 * GB, 2 * GB),
    Device("cuda:1", 4 * GB, 4 * GB, reserve=GB),
    Device("cpu", 8 * GB, 8 * GB),
]
BLOCKS = [Block(f"blocks.{i}", 100 * MB, f"blocks.{i}") for i in range(30)]
HEAVY = [Block("embed", 3 * GB, pinned="small"), *BLOCKS]
UNKNOWN = [Device("cuda:0", None, None), Device("cuda:1", None, None), Device("cpu", 8 * GB, 8 * GB)]  # fmt: skip


def outcome(text: str, blocks: list[Block], table: list[Device], **options: object) -> list[str]:
    """Notes and reasons of a plan, or the lines of the refusal."""
    spec = parse(text).without(["cuda:7"])
    try:
        plan = make_plan(spec, blocks, table, "cuda:0", Options(**options))
    except (AllocationError, PlanError) as error:
        return error.message.splitlines()
    return [*plan.notes, *plan.reasons.values()]


def sentences() -> set[str]:
    """What a planner says, of plans that need a word and of those that fail."""
    found = []
    for text in (
        *("cuda:0,1%;cpu,3%", "cuda:0,3gb;cpu,*", "cuda:1,1gb;cuda:7,1gb;cpu,*", "cuda:1,*"),
        *("cuda:0,1gb;cuda:1,1gb", "cuda:0,1gb;cpu,20%", "#cuda:0;40;cuda:1", "auto", "cpu,*"),
        *("cuda:0,10mb;cpu,*", "#cuda:0;1;cuda:0,cpu", "cuda:0,10%;cuda:1,90%", "cuda:0,90%;cpu,*#cuda:1"),
    ):  # fmt: skip
        for table in (TABLE, UNKNOWN):
            for blocks in (BLOCKS, HEAVY):
                found += outcome(text, blocks, table, slots=None)
    found += outcome("cuda:0,3gb;cpu,*", BLOCKS, TABLE, strict=True)
    found += outcome("cuda:0,100mb;cuda:1,*", BLOCKS * 1, [*TABLE[:1], Device("cuda:1", GB, GB), TABLE[2]])  # fmt: skip
    found += outcome("cuda:0,100mb;cpu,200mb", BLOCKS, TABLE)
    found += outcome("0.5", BLOCKS, UNKNOWN)
    return {line for line in found if line.strip()}


WRONG_STRINGS = (
    *("", "cuda:0,1.5xyz;cpu,*", "cuda:0", "cuda:0,", "gpu:0,1gb", "cuda:0,1gb;cuda:0,2gb", "2gb"),
    *("cuda:0,*;cpu,*", "cuda:0,-1gb", "cuda:0,nan", "cuda:0,1.5", "cuda:0,2,5gb", "cuda:0,0%"),
    *("cuda:0,1gb,mode=fast", "cuda:0,1gb,way=1", "auto,keep=1gb", "cuda:0,60%;cuda:1,60%;cpu,*"),
    "#cuda:0;1;cpu,cpu",
)


def wrong_strings() -> set[str]:
    """What the parser says, without the place."""
    found = set()
    for text in WRONG_STRINGS:
        try:
            parse(text)
        except AllocationError as error:
            found.add(error.message.splitlines()[0])
            found.add(error.expected)
    return found


def test_what_the_server_says_is_in_the_table() -> None:
    told = sentences() | wrong_strings() | {checks.IN_RAM, checks.FOREIGN}
    assert len(told) > 60

    async def check(page: Page, _server: StandIn) -> None:
        await page.evaluate("document.documentElement.lang = 'zh-CN'")
        code = f"import('/extensions/DisTorch/lib/text.js').then((m) => {json.dumps(sorted(told))}.map(m.said))"
        said = await page.evaluate(code)
        english = [
            f"{before} -> {after}"
            for before, after in zip(sorted(told), said, strict=True)
            if not re.search("[\u4e00-\u9fff]", after)
        ]
        assert english == []

    on_page(check, tab=False)


def test_the_tab_is_chinese_but_for_names() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.evaluate("document.documentElement.lang = 'zh'")
        await page.click("#tab-distorch")
        await page.click("#tab-distorch")
        await page.wait_for(f"{ROWS} === 5")
        await page.click('[data-key="device-cuda:0-head"]')
        await page.click('[data-key="steer-1"] summary')
        await page.wait_for("document.querySelector('.dt-outlook .dt-fact')")
        await page.click('[data-key="eject-2"]')
        await page.wait_for("document.querySelector('[data-state=\"queued\"]')")
        await server.send("distorch.report", server.backend.reports[1])
        await page.wait_for("document.querySelector('[data-freed]')")
        text = await page.evaluate("document.querySelector('.dt-panel').innerText")
        words = set(re.findall(r"[A-Za-z][A-Za-z]{2,}", text))
        names = set(re.findall(r"[A-Za-z]{3,}", json.dumps([r.name for r in server.backend.rows])))
        assert words - names <= NAMES, words - names - NAMES
        amber = await page.evaluate("document.querySelector('.dt-note').innerText")
        assert "上限降为" in amber

    on_page(check)


# Names that stay: devices, programs, nodes, words of the string itself, the kind of model that has no Chinese name.
NAMES = {"GPU", "RAM", "NVIDIA", "GeForce", "RTX", "ComfyUI", "PCIe", "python", "firefox", "cuda", "cpu"} | {
    *("KSampler", "UNETLoader", "DisTorch", "SIM", "ControlNet", "LoRA", "auto", "min", "VAE")
}  # fmt: skip


def test_both_languages_have_every_placeholder() -> None:
    for key, (english, chinese) in TEXTS.items():
        assert all((english, chinese)), key
        wanted = set(re.findall(r"\{(\w+)\}", english))
        assert set(re.findall(r"\{(\w+)\}", chinese)) == wanted, key


def test_every_text_is_used() -> None:
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "web").rglob("*.js"))
    families = {m.split("$")[0] for m in re.findall(r"t\(`([^`]*\$\{[^`]*)`", source)}
    for key in TEXTS:
        if key.startswith(("said.", "setting.", "widget.", "family.")):
            continue
        used = f"'{key}'" in source or any(key.startswith(f) for f in families if f)
        used = used or key.removesuffix(".why") in source
        assert used, key


def test_the_backend_of_these_tests_says_what_the_pack_says() -> None:
    whys = {m["why_not"] for m in StandInBackend().models()["models"]} - {""}
    assert whys == {checks.IN_RAM, checks.FOREIGN}
