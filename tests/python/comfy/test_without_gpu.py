# SPDX-License-Identifier: Apache-2.0
"""ComfyUI on the processor alone and on two simulated devices: what can be shown on every system, Windows too.

`make windows-test` runs this file with ComfyUI on Windows' own Python and torch (COMFYUI_PYTHON). With
DISTORCH_UPDATE_PICTURES=1 it makes the picture of docs/packaging.md anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import open_page
from comfy_harness import ComfyServer, Workflow, versions
from comfy_harness.server import PATIENCE, repository_root

pytestmark = pytest.mark.comfy

NEWEST = versions(dynamic=False)[:1] or [None]
# Where a model's blocks go, by the capacities of the devices.
STRINGS = {(): "cpu,*", (4 << 30, 4 << 30): "sim:0,30%;sim:1,30%;cpu,40%"}
STATE = """
import gc, sys
import comfy.model_management as mm
gc.collect()
def _part(name):
    return next(m for n, m in sys.modules.items() if n.endswith("patches.ejecting." + name))
result = {"kept": len(_part("keep").kept()), "violations": _part("unload").violations,
          "listed": [id(e.model.model) for e in mm.current_loaded_models if e.model is not None],
          "changed": changed_core_objects()}
"""


@pytest.fixture(scope="module", params=STRINGS, ids=["cpu", "simulated"])
def server(
    request: pytest.FixtureRequest, comfy_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    (newest,) = NEWEST
    if newest is None:
        pytest.skip("COMFYUI_PATH is not set")
    base = tmp_path_factory.mktemp("without_gpu")
    (base / "models").symlink_to(comfy_models)
    running = ComfyServer(newest, base, capacities=request.param)
    yield running
    running.stop()


@pytest.fixture
def comfy(server: ComfyServer) -> ComfyServer:
    server.free()
    return server


def devices(comfy: ComfyServer) -> list[str]:
    return [f"sim:{i}" for i in range(len(comfy.capacities))] or ["cpu"]


def workflow(
    comfy: ComfyServer, file: str, name: str, *, keep: bool = True, ours: bool = True
) -> Workflow:
    w = Workflow()
    if ours:
        model = w.add(
            "UNETLoaderDisTorch2MultiGPU",
            unet_name=file,
            weight_dtype="default",
            compute_device=devices(comfy)[0],
            expert_mode_allocations=STRINGS[comfy.capacities],
            eject_models=False,
            keep_loaded=keep,
        )
    else:
        model = w.add("UNETLoader", unet_name=file, weight_dtype="default")
    return w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), name)


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Return the first true answer of `condition`."""
    deadline = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def models(comfy: ComfyServer) -> dict[str, dict[str, Any]]:
    return {m["name"]: m for m in comfy.get("/distorch/models")["models"]}


def test_a_placed_model_computes_what_the_core_does(comfy: ComfyServer) -> None:
    core = comfy.run(workflow(comfy, "wan.safetensors", "core", ours=False)).values["core"]
    placed = comfy.run(workflow(comfy, "wan.safetensors", "placed")).values["placed"]
    assert torch.equal(core, placed)
    (placement,) = comfy.get("/distorch/placements")["placements"]
    assert placement["compute"] == devices(comfy)[0]
    used = {*devices(comfy), "cpu"}
    assert {block["device"] for block in placement["blocks"]} == used
    assert sum(placement["bytes"][device] for device in used) > 10 << 20


def test_free_leaves_what_is_kept_and_takes_what_is_flagged(comfy: ComfyServer) -> None:
    """Selective unload, and the strict no-op where nothing is flagged."""
    comfy.run(workflow(comfy, "wan.safetensors", "a"))
    before = comfy.evaluate(STATE)
    assert before["kept"] == 1
    comfy.free(let_go=False)
    assert comfy.evaluate(STATE) == before, "none flagged: nothing at all happens"
    comfy.run(workflow(comfy, "wan_second.safetensors", "b", keep=False))
    # A donor's part of a model stands beside it in ComfyUI's list.
    assert len(comfy.evaluate(STATE)["listed"]) == 2 * len(before["listed"])
    comfy.free(let_go=False)
    after = until(
        lambda: (now := comfy.evaluate(STATE))["listed"] == before["listed"] and now,
        "exactly the flagged one goes",
    )
    assert (after["kept"], after["violations"]) == (1, before["violations"])
    comfy.free()
    assert until(lambda: not comfy.evaluate(STATE)["listed"], "the kept one goes when let go")


def test_the_tab_finds_the_model_and_ejects_it(comfy: ComfyServer) -> None:
    comfy.run(workflow(comfy, "wan.safetensors", "a"))
    found = until(lambda: models(comfy).get("wan"), "the scan finds it")
    assert found["file"] == "diffusion_models/wan.safetensors"
    assert found["managed"] is True
    used = {*devices(comfy), "cpu"}
    assert sum(found["bytes"][device] for device in used) > 10 << 20
    rows = {d["device"]: d for d in comfy.get("/distorch/devices")["devices"]}
    parts = ("models", "tensors", "unused", "other", "free")
    for device in used:
        assert sum(rows[device][part] for part in parts) == rows[device]["total"] > 1 << 30
    metrics = f"http://127.0.0.1:{comfy.port}/distorch/metrics"
    with urllib.request.urlopen(metrics, timeout=30) as answer:
        text = answer.read().decode()
    for device in used:
        assert f'distorch_device_bytes{{device="{device}",part="models"}}' in text
    assert comfy.get("/distorch/history?seconds=600")["runs"]
    ticket = comfy.request("/distorch/eject", {"ids": [found["id"]]})["ticket"]
    report = until(
        lambda: (r := comfy.get(f"/distorch/report?ticket={ticket}"))["state"] == "done" and r,
        f"ticket {ticket} is done",
    )
    assert "wan" in json.dumps(report)
    assert until(lambda: not comfy.evaluate(STATE)["listed"], "it has left ComfyUI's list")


def test_the_front_end_draws_it(comfy: ComfyServer) -> None:
    comfy.request("/settings/Comfy.TutorialCompleted", True)  # else templates cover the page
    comfy.run(workflow(comfy, "wan.safetensors", "a"))

    async def look() -> str:
        async with open_page(1280, 800) as page:
            await page.send("Page.navigate", url=f"http://127.0.0.1:{comfy.port}/")
            ready = "window.app?.extensionManager?.sidebarTab"
            await page.wait_for(ready, 240 * PATIENCE)
            # Again and again: a front end that has not quite started closes it.
            await page.wait_for(
                """(() => { const side = app.extensionManager.sidebarTab
                if (side.activeSidebarTabId !== 'distorch') side.toggleSidebarTab('distorch')
                return document.querySelector('.dt-model') })()""",
                60 * PATIENCE,
            )
            await page.evaluate("app.graph.clear()")
            await asyncio.sleep(2)
            if comfy.capacities and os.environ.get("DISTORCH_UPDATE_PICTURES") == "1":
                await page.screenshot(repository_root() / "docs/images/comfyui-windows.png")
            return await page.evaluate("document.querySelector('.side-bar-panel').innerText")

    text = asyncio.run(look())
    assert "wan" in text
    for device in {*devices(comfy), "cpu"}:
        assert device in text.lower()
