# SPDX-License-Identifier: Apache-2.0
"""The pictures of the example workflows among ComfyUI's templates: what lies where, readable on a small card.

With DISTORCH_UPDATE_PICTURES=1 they are made anew.
"""

from __future__ import annotations

import asyncio
import base64
import html
import json
import os
import pathlib

from chromium import open_page

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "example_workflows"
WIDTH, HEIGHT = 800, 450
# As the tab draws devices (web/lib/colours.js).
COLOURS = {"GPU 0": "#2f80ed", "GPU 1": "#12a594", "RAM": "#8c8c8c"}

Chip = tuple[str, float, bool]  # words, share of the width, streamed to a GPU when it is used
Rows = dict[str, list[Chip]]

PICTURES: dict[str, tuple[str, str, list[tuple[str, Rows]]]] = {
    "Flux on one GPU and system memory": (
        "Flux",
        "one GPU and system memory",
        [("", {"GPU 0": [("model 6 GB", 4, False), ("text 3 GB", 3, False), ("VAE", 1.4, False)],
               "RAM": [("rest of the model", 5, True), ("rest of the text", 4, True)]})],
    ),
    "Plan before loading": (
        "Plan",
        "two strings side by side, nothing is loaded",
        [("cuda:0,40%;cuda:1,6gb;cpu,*",
          {"": [("GPU 0", 4, False), ("GPU 1", 2.7, True), ("RAM", 3.3, True)]}),
         ("cuda:0,10gb;cpu,*", {"": [("GPU 0", 4.5, False), ("RAM", 5.5, True)]})],
    ),
    "Qwen-Image with its text encoder on the second GPU": (
        "Qwen-Image",
        "text encoder and VAE on the second GPU",
        [("", {"GPU 0": [("model 10 GB", 8, False)],
               "GPU 1": [("text encoder", 5.5, False), ("VAE", 1.5, False)],
               "RAM": [("rest of the model", 7, True)]})],
    ),
    "SDXL checkpoint with each part on its device": (
        "SDXL",
        "each part of a checkpoint on its device",
        [("", {"GPU 0": [("model", 6, False), ("VAE", 1.5, False)],
               "RAM": [("2 GB of the model", 5, True), ("text encoders", 5, False)]})],
    ),
    "Wan 2.2 on two GPUs with an unload in the middle": (
        "Wan 2.2",
        "two GPUs, an unload in the middle",
        [("high noise", {"GPU 0": [("8 GB", 8, False)], "GPU 1": [("6 GB", 6, True)], "RAM": [("rest", 3, True)]}),
         ("low noise", {"GPU 0": [("8 GB", 8, False)], "GPU 1": [("6 GB", 6, True)], "RAM": [("rest", 3, True)]})],
    ),
}  # fmt: skip

STYLE = """
  body { margin: 0; width: 800px; height: 450px; background: #171718; color: #f2f2f2; font: 26px Inter, system-ui, sans-serif;
    padding: 34px 40px; box-sizing: border-box; display: grid; grid-template-rows: auto 1fr; gap: 22px; overflow: hidden }
  h1 { margin: 0; font-size: 56px; line-height: 1 } h1 + p { margin: 8px 0 0; color: #b5b5b8 }
  main { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 54px; align-content: center }
  main.stacked { grid-auto-flow: row }
  h2 { margin: 0 0 10px; font: 600 24px ui-monospace, monospace; color: #cfcfd2 }
  .row { display: grid; grid-template-columns: 96px 1fr; align-items: center; margin: 7px 0 } .row.bare { grid-template-columns: 1fr }
  .bar { display: flex; gap: 4px; height: 54px; border-radius: 10px; overflow: hidden; background: #262729 }
  .chip { display: grid; align-items: center; justify-content: center; white-space: nowrap; overflow: hidden; font-size: 22px; color: #fff;
    text-shadow: 0 1px 3px rgb(0 0 0 / 70%) }
  .streamed { background-image: repeating-linear-gradient(45deg, rgb(255 255 255 / 30%) 0 5px, transparent 5px 14px) }
  .arrow { position: relative } .arrow::before { content: '→'; position: absolute; left: -44px; top: 48%; font-size: 36px; color: #b5b5b8 }
"""


def page_of(name: str) -> str:
    title, words, parts = PICTURES[name]
    columns = []
    for index, (head, rows) in enumerate(parts):
        drawn = []
        for device, chips in rows.items():
            whole = max(10.0, sum(share for _, share, _ in chips))
            found = "".join(
                f'<span class="chip{" streamed" if streamed else ""}" style="flex: 0 0 {100 * share / whole:.1f}%;'
                f' background-color: {COLOURS[device or text]}">{html.escape(text)}</span>'
                for text, share, streamed in chips
            )
            label = f"<span>{device}</span>" if device else ""
            drawn.append(
                f'<div class="row{"" if device else " bare"}">{label}<div class="bar">{found}</div></div>'
            )
        arrow = ' class="arrow"' if index and name.startswith("Wan") else ""
        columns.append(
            f"<section{arrow}>{f'<h2>{html.escape(head)}</h2>' if head else ''}{''.join(drawn)}</section>"
        )
    stacked = ' class="stacked"' if name.startswith("Plan") else ""
    body = (
        f"<header><h1>{title}</h1><p>{words}</p></header><main{stacked}>{''.join(columns)}</main>"
    )
    return f"<!doctype html><meta charset='utf-8'><style>{STYLE}</style><body>{body}</body>"


def test_nothing_is_cut_off() -> None:
    async def draw() -> None:
        async with open_page(WIDTH + 100, HEIGHT + 250) as page:
            for name in PICTURES:
                address = base64.b64encode(page_of(name).encode()).decode()
                await page.goto(f"data:text/html;base64,{address}")
                cut = "[...document.querySelectorAll('.chip, h1, p, h2')].filter((e) => e.scrollWidth > e.clientWidth)"
                assert await page.evaluate(f"{cut}.map((e) => e.innerText)") == [], name
                assert await page.evaluate(f"document.body.scrollHeight <= {HEIGHT}"), name
                if os.environ.get("DISTORCH_UPDATE_PICTURES") == "1":
                    clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": 1}
                    found = await page.send(
                        "Page.captureScreenshot", format="jpeg", quality=88, clip=clip
                    )
                    data = base64.b64decode(found["data"])
                    (FOLDER / f"{name}.jpg").write_bytes(data)

    asyncio.run(draw())


def test_each_example_has_one_that_speaks_of_its_strings() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(PICTURES)
    for name in PICTURES:
        text = json.dumps(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
        for word in ("6 GB", "8 GB", "10 GB", "3 GB"):
            if any(
                word in chip[0]
                for _, rows in PICTURES[name][2]
                for r in rows.values()
                for chip in r
            ):
                assert f",{word.replace(' ', '').lower()}" in text, (name, word)
