# SPDX-License-Identifier: Apache-2.0
"""The memory view in real ComfyUI with its real front end: five models through five nodes."""

from __future__ import annotations

import asyncio
import json
import pathlib
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from chromium import CONTRAST, open_page
from comfy_harness import ComfyError, ComfyServer, Workflow, models, versions
from comfy_harness.server import LET_GO

pytestmark = pytest.mark.comfy

HERE = pathlib.Path(__file__).parent
ALLOCATED = "import torch; result = {f'sim:{i}': torch.sim.memory_allocated(i) for i in range(3)}"
CLEAR = "import gc, comfy.model_management as mm; gc.collect(); mm.soft_empty_cache(); result = 1"


@pytest.fixture(scope="module", params=versions() or [None], ids=lambda v: v.name if v else "none")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A server of its own: what other tests left in memory would be in the way."""
    if request.param is None:
        pytest.skip("COMFYUI_PATH is not set")
    base = tmp_path_factory.mktemp("memory-view-" + request.param.name)
    models.write_all(base / "models")
    (base / "models/upscale_models").mkdir(exist_ok=True)
    upscaler = torch.nn.Sequential(*[torch.nn.Conv2d(64, 64, 3) for _ in range(20)])
    torch.save(upscaler, base / "models/upscale_models/up.pt")
    # The interface speaks of one origin; a browser's own check is what is tested here.
    made = ComfyServer(request.param, base, packs=[HERE / "torch_load_pack"])
    yield made
    made.stop()


def five_models() -> Workflow:
    """UNet and VAE and CLIP by the core's nodes, a second UNet by ours, an upscaler by a pack."""
    w = Workflow()
    unet = w.add("UNETLoader", unet_name="wan.safetensors", weight_dtype="default")
    w.save(w.sample(unet, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
    ours = w.add(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name="wan_second.safetensors",
        weight_dtype="default",
        compute_device="sim:0",
        virtual_vram_gb=0.0,
        donor_device="cpu",
        expert_mode_allocations="sim:0,6mb;sim:1,4mb;sim:2,*",
        eject_models=False,
    )
    w.save(w.sample(ours, w.conditioning(8, 4096, seed=3), w.latent(1, 16, 1, 8, 8)), "second")
    clip = w.add("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion")
    w.save(w.add("CLIPTextEncode", clip=clip, text="a cat"), "prompt")
    vae = w.add("VAELoader", vae_name="vae.safetensors")
    w.save(w.add("VAEDecode", samples=w.latent(1, 4, 8, 8), vae=vae), "image")
    w.add("TorchLoadUpscaler", name_of_file="up.pt")
    return w


def rows(server: ComfyServer) -> dict[str, dict[str, Any]]:
    return {m["name"]: m for m in server.get("/distorch/models")["models"]}


def held(found: dict[str, dict[str, Any]]) -> dict[str, int]:
    sums = {f"sim:{i}": 0 for i in range(3)}
    for model in found.values():
        for device, size in model["bytes"].items():
            if device in sums:
                sums[device] += size
    return sums


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Return the first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def wait_report(server: ComfyServer, ticket: int) -> dict[str, Any]:
    path = f"/distorch/report?ticket={ticket}"
    wait_until(lambda: server.get(path)["state"] in ("done", "failed"), f"ticket {ticket} is done")
    report: dict[str, Any] = server.get(path)
    return report


def test_five_models_by_name_with_the_backends_bytes(server: ComfyServer) -> None:
    server.run(five_models())
    server.evaluate(CLEAR)
    names = {"wan", "wan_second", "clip_l", "vae", "Sequential"}
    wait_until(lambda: set(rows(server)) == names, "all five are found")
    found = rows(server)
    assert {name: m["type"] for name, m in found.items()} == {
        "wan": "checkpoint", "wan_second": "checkpoint", "clip_l": "clip", "vae": "vae", "Sequential": "upscaler",
    }  # fmt: skip
    assert found["wan"]["file"] == "diffusion_models/wan.safetensors"
    assert found["wan_second"]["managed"] is True
    assert found["Sequential"]["layers"] == 20
    assert held(found) == server.evaluate(ALLOCATED)
    if server.version.dynamic:
        assert found["wan"]["outside"]["sim:0"] > 0.9 * found["wan"]["bytes"]["sim:0"]
    (placement,) = server.get("/distorch/placements")["placements"]
    assert found["wan_second"]["outside"] == {"sim:0": placement["staging_bytes"]}
    assert placement["staging_bytes"] > 0
    assert placement["measured_step_ms"] > 0, "the sampler has reported two steps"
    away = sum(placement["bytes"][d] for d in ("sim:1", "sim:2"))
    assert found["wan_second"]["streamed"] + found["wan_second"]["migrated"] == away


def test_devices_add_up_and_placements_are_there(server: ComfyServer) -> None:
    devices = server.get("/distorch/devices")["devices"]
    for device in devices:
        parts = ("models", "tensors", "unused", "other", "free")
        assert sum(device[part] for part in parts) == device["total"], device
    (placement,) = server.get("/distorch/placements")["placements"]
    assert placement["compute"] == "sim:0"
    assert {b["device"] for b in placement["blocks"]} == {"sim:0", "sim:1", "sim:2"}


def test_the_history_has_the_prompt_its_nodes_and_what_they_loaded(server: ComfyServer) -> None:
    history = server.get("/distorch/history?seconds=600")
    assert (history["seconds"], history["interval"]) == (600, 1.0)
    figures = history["samples"][-1]["devices"]
    assert {"sim:0", "sim:1", "sim:2", "cpu"} <= set(figures)
    assert set(figures["sim:0"]) == {"used", "total", "allocated", "reserved", "peak"}
    run = max(history["runs"], key=lambda r: len(r["nodes"]))
    assert run["status"] == "success"
    assert run["started"] <= run["nodes"][0]["started"] <= run["nodes"][-1]["ended"] <= run["ended"]
    kinds = {n["kind"] for n in run["nodes"]}
    assert {"UNETLoader", "KSampler", "VAELoader", "TorchLoadUpscaler"} <= kinds
    found = rows(server)
    loads = [(n["kind"], x) for n in run["nodes"] for x in n["loaded"]]
    assert {x["name"] for _, x in loads} == set(found)
    sampled = {x["name"]: x["bytes"] for kind, x in loads if kind == "KSampler"}
    assert sampled["wan"]["sim:0"] == found["wan"]["bytes"]["sim:0"]
    weights = found["wan"]["bytes"]["sim:0"]
    (sampler,) = [
        n
        for n in run["nodes"]
        if "wan" in {x["name"] for x in n["loaded"]} and n["kind"] == "KSampler"
    ]
    assert sampler["peak"]["sim:0"] > weights, "activations come on top"
    assert run["peak"]["sim:0"] == max(n["peak"]["sim:0"] for n in run["nodes"])
    one = server.get(f"/distorch/history?seconds=600&prompt={run['prompt']}")["runs"]
    assert [r["prompt"] for r in one] == [run["prompt"]]


def test_metrics_count_the_runs(server: ComfyServer) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/distorch/metrics") as answer:
        text = answer.read().decode()
    assert re.search(r'^distorch_runs_total\{status="success"\} [1-9]', text, re.MULTILINE)
    assert re.search(r'^distorch_nodes_total\{kind="KSampler"\} [1-9]', text, re.MULTILINE)
    assert re.search(r'^distorch_device_peak_bytes\{device="sim:0"\} [1-9]', text, re.MULTILINE)


def test_the_profiler_route_is_there_with_and_without_api(server: ComfyServer) -> None:
    answer = server.get("/swissarmyknife/profiler/loaded_models")
    assert answer == server.get("/api/swissarmyknife/profiler/loaded_models")
    assert set(answer["data"]) == {"0", "1", "2"}
    names = [m["name"] for m in answer["data"]["0"]["models"]]
    assert {"wan", "wan_second", "vae"} <= set(names)


def test_a_click_in_the_real_front_end_ejects_one_model(server: ComfyServer) -> None:
    before = rows(server)
    allocated = server.evaluate(ALLOCATED)

    server.request("/settings/Comfy.TutorialCompleted", True)  # else templates cover the page

    ejected: list[int] = []

    async def use_the_page() -> None:
        async with open_page(1400, 1000) as page:
            await page.goto(f"http://127.0.0.1:{server.port}/")
            await page.wait_for(
                "window.app?.extensionManager && document.querySelector('.dt-badge')", 240
            )
            await page.evaluate("app.extensionManager.sidebarTab.toggleSidebarTab('distorch')")
            await page.wait_for("document.querySelectorAll('.dt-model').length === 5", 120)
            await page.wait_for("document.querySelectorAll('.dt-nodes tbody tr').length > 0", 120)
            await in_both_themes(page)
            shown = await page.evaluate(
                "JSON.stringify([...document.querySelectorAll('.dt-model .dt-name')].map(e => e.textContent))"
            )
            assert set(json.loads(shown)) == set(before)
            button = f'[data-key="eject-{before["wan"]["id"]}"]'
            await at_rest(page, button)
            await page.click(button)
            await page.wait_for("document.querySelector('[data-freed]')", 120)
            freed = await page.evaluate(
                "Number(document.querySelector('[data-freed]').dataset.freed)"
            )
            ejected.append(freed)
            assert [x for x in page.console if "EXCEPTION" in x and "distorch" in x.lower()] == []
            assert [x for x in page.console if "Unhandled message" in x] == []

    asyncio.run(use_the_page())
    after = rows(server)
    # With DynamicVRAM the core leaves a few small tensors where they are.
    left = after["wan"]["bytes"].get("sim:0", 0)
    gone = before["wan"]["bytes"]["sim:0"] - left
    assert ejected == [gone]
    assert left == 0 or (server.version.dynamic and left < 2**16)
    assert "sim:0" not in after["wan"]["outside"]
    assert server.evaluate(ALLOCATED) == {**allocated, "sim:0": allocated["sim:0"] - gone}
    assert set(after) == set(before)
    for name in set(before) - {"wan"}:
        assert after[name]["bytes"] == before[name]["bytes"], name
    assert after["wan"]["offloaded"] > 0


async def at_rest(page: Any, selector: str) -> None:
    """Wait until the element has stopped to move: the sidebar slides in."""
    place = f"JSON.stringify(document.querySelector({selector!r}).getBoundingClientRect())"
    seen: list[str] = []
    while len(seen) < 5 or len(set(seen[-5:])) > 1:
        seen.append(await page.evaluate(place))
        await asyncio.sleep(0.1)


async def in_both_themes(page: Any) -> None:
    """In both themes of the front end."""
    background = (
        "getComputedStyle(document.querySelector('.dt-panel')).getPropertyValue('--dt-back').trim()"
    )
    await page.evaluate(
        "app.graph.clear()"
    )  # the picture is of our tab, not of ComfyUI's first workflow
    seen = {}
    for theme in ("light", "dark"):
        await page.evaluate(f"app.extensionManager.setting.set('Comfy.ColorPalette', '{theme}')")
        await page.wait_for(
            "document.getAnimations().every((one) => one.playState !== 'running'"
            " || one.effect.getTiming().iterations === Infinity)"
        )
        await page.wait_for(
            f"document.documentElement.matches('.dark-theme') === {str(theme == 'dark').lower()}"
        )
        await page.frames(2)
        assert await page.evaluate(CONTRAST) >= 4.5, f"text must stand out in the {theme} theme"
        seen[theme] = await page.evaluate(background)
    assert seen["light"] != seen["dark"]


def test_a_model_that_comfyui_did_not_load_cannot_be_ejected(server: ComfyServer) -> None:
    model = rows(server)["Sequential"]
    assert model["ejectable"] is False
    with pytest.raises(ComfyError, match="only the node that holds it can let it go"):
        server.request("/distorch/eject", {"ids": [model["id"]]})


def test_freeing_everything_empties_the_list(server: ComfyServer) -> None:
    server.evaluate(LET_GO)
    answer = server.request("/distorch/free", {"unload_models": True, "free_memory": True})
    report = wait_report(server, answer["ticket"])
    assert report["state"] == "done"
    assert report["freed_total"] > 0
    server.evaluate(
        "import sys; [m.KEPT.clear() for n, m in list(sys.modules.items()) if n.endswith('torch_load_pack')]; result = 1"
    )
    server.evaluate(CLEAR)
    wait_until(lambda: not rows(server), "nothing is left")
    assert set(server.evaluate(ALLOCATED).values()) == {0}


def test_without_safetensors_there_are_class_names(server: ComfyServer) -> None:
    folder = server.base / "models/diffusion_models"
    from safetensors.torch import load_file

    torch.save(load_file(folder / "wan.safetensors"), folder / "plain.ckpt")
    w = Workflow()
    unet = w.add("UNETLoader", unet_name="plain.ckpt", weight_dtype="default")
    w.save(w.sample(unet, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
    server.run(w)
    wait_until(lambda: len(rows(server)) == 1, "the model is found")
    (model,) = server.get("/distorch/models")["models"]
    assert model["name"] == model["class_name"]
    assert model["file"] == "diffusion_models/plain.ckpt"


def test_a_burst_inside_a_node_is_in_the_peaks(server: ComfyServer) -> None:
    before = server.evaluate(ALLOCATED)["sim:0"]
    w = Workflow()
    code = (
        "import time; x = torch.empty(2**30, dtype=torch.uint8, device='sim:0'); time.sleep(0.05)"
    )
    w.add("DistorchTestSave", value=w.add("DistorchTestRun", value="x", code=code), name="burst")
    result = server.run(w)
    (run,) = server.get(f"/distorch/history?prompt={result.prompt_id}")["runs"]
    peaks = {n["kind"]: n["peak"]["sim:0"] for n in run["nodes"]}
    # What was there before may go with the prompt that needed it.
    assert 2**30 <= peaks["DistorchTestRun"] <= before + 2**30
    assert peaks["DistorchTestSave"] < 2**30
    assert run["peak"]["sim:0"] == peaks["DistorchTestRun"]

    def sampled() -> bool:
        samples = server.get("/distorch/history?seconds=60")["samples"]
        return max(s["devices"]["sim:0"]["peak"] for s in samples) == peaks["DistorchTestRun"]

    wait_until(sampled, "the burst is in a sample")
