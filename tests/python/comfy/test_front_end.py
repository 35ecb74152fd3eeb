# SPDX-License-Identifier: Apache-2.0
"""Our nodes and settings in ComfyUI's real front end: what is shown, saved, and sent to the server."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from chromium import open_page
from comfy_harness import ComfyServer, models, versions

PREDECESSOR = pathlib.Path(os.environ.get("DISTORCH_PREDECESSOR_PATH", "/nowhere"))
pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """The first version alone: all share one front end here."""
    base = tmp_path_factory.mktemp("front-end")
    models.write_all(base / "models")
    gguf = os.environ.get("COMFYUI_GGUF_PATH")
    packs = [pathlib.Path(gguf)] if gguf else []
    made = ComfyServer(versions(dynamic=False)[0], base, packs=packs)
    made.request("/settings/Comfy.TutorialCompleted", True)  # else templates cover the page
    yield made
    made.stop()


def on_page(server: ComfyServer, check: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    async def use() -> None:
        async with open_page(1400, 1000) as page:
            await page.goto(f"http://127.0.0.1:{server.port}/")
            await page.wait_for(
                "window.app?.extensionManager && document.querySelector('.dt-badge')", 90
            )
            await check(page)
            assert [x for x in page.console if "EXCEPTION" in x and "distorch" in x.lower()] == []
            assert [x for x in page.console if "already registered" in x] == []

    asyncio.run(use())


def test_a_plan_is_shown_in_its_node_and_is_no_part_of_the_workflow(server: ComfyServer) -> None:
    async def check(page: Any) -> None:
        await page.evaluate("""
            (() => {
              app.graph.clear()
              window.plan = LiteGraph.createNode('DisTorchPlan')
              app.graph.add(plan)
              const set = (name, value) => { plan.widgets.find((w) => w.name === name).value = value }
              set('file', 'diffusion_models/wan.safetensors')
              set('expert_mode_allocations', 'sim:1,6mb;sim:0,*')
              window.saved = JSON.stringify(plan.serialize().widgets_values)
              app.queuePrompt(0)
            })()""")
        text = "plan.distorchPlans?.element.querySelector('pre')?.textContent ?? ''"
        await page.wait_for(f"({text}).includes('Final Device/Layer Assignments')", 60)
        assert "allocation: sim:1,6mb;sim:0,*#sim:0" in await page.evaluate(text)
        again = "JSON.stringify(plan.serialize().widgets_values) === saved"
        assert await page.evaluate(again) is True
        prompt = await page.evaluate(
            "app.graphToPrompt().then((p) => JSON.stringify(Object.values(p.output)[0].inputs))"
        )
        assert not {"distorch_text", "distorch_plans"} & set(json.loads(prompt))

    on_page(server, check)


def test_device_and_unload_connect_to_other_nodes(server: ComfyServer) -> None:
    async def check(page: Any) -> None:
        linked = await page.evaluate("""
            (() => {
              app.graph.clear()
              const make = (type) => {
                const node = LiteGraph.createNode(type)
                app.graph.add(node)
                return node
              }
              const into = (node, name) => node.inputs.findIndex((input) => input.name === name)
              const [device, loader] = [make('DisTorchDevice'), make('UNETLoaderDisTorch2MultiGPU')]
              const [unload, sampler] = [make('DisTorchUnload'), make('KSampler')]
              const latent = make('EmptyLatentImage')
              window.nodes = { device, loader, unload, sampler, latent }
              return [
                device.connect(0, loader, into(loader, 'compute_device')),
                device.connect(0, loader, into(loader, 'donor_device')),
                loader.connect(0, unload, into(unload, 'model')),
                loader.connect(0, sampler, into(sampler, 'model')),
                latent.connect(0, unload, into(unload, 'value')),
                unload.connect(0, sampler, into(sampler, 'latent_image'))
              ].map(Boolean)
            })()""")
        assert linked == [True] * 6
        found = json.loads(
            await page.evaluate(
                "app.graphToPrompt().then((p) => JSON.stringify([p.output, "
                "Object.fromEntries(Object.entries(nodes).map(([k, n]) => [k, String(n.id)]))]))"
            )
        )
        output, ids = found
        inputs = {name: output[node]["inputs"] for name, node in ids.items()}
        assert inputs["loader"]["compute_device"] == [ids["device"], 0]
        assert inputs["loader"]["donor_device"] == [ids["device"], 0]
        assert inputs["unload"]["value"] == [ids["latent"], 0]
        assert inputs["unload"]["model"] == [ids["loader"], 0]
        assert inputs["sampler"]["latent_image"] == [ids["unload"], 0]

    on_page(server, check)


def test_a_setting_made_on_the_page_is_the_servers(server: ComfyServer) -> None:
    async def check(page: Any) -> None:
        get = "app.extensionManager.setting.get('DisTorch.cpu_memory_threshold')"
        assert await page.evaluate(get) == 85
        await page.evaluate("app.extensionManager.setting.set('DisTorch.cpu_memory_threshold', 70)")
        for _ in range(100):
            if server.evaluate(THRESHOLD) == 0.7:
                break
            await asyncio.sleep(0.1)
        assert server.evaluate(THRESHOLD) == 0.7

    on_page(server, check)


THRESHOLD = """
import sys
result = next(m for n, m in sys.modules.items() if n.endswith("patches.ejecting.cleanup")).cpu_threshold
"""


@pytest.mark.skipif(
    not (PREDECESSOR / "example_workflows").is_dir(),
    reason="DISTORCH_PREDECESSOR_PATH is not set",
)
def test_the_predecessors_workflows_open_with_their_values(server: ComfyServer) -> None:
    """Opened in the front end and exported again, each node of ours has the values of its API form."""
    known = {
        name
        for name, info in server.get("/object_info").items()
        if info["python_module"].endswith("DisTorch")
    }
    pairs = []
    for path in sorted((PREDECESSOR / "ci" / "example_workflows_api").glob("*.json")):
        name = path.stem.removesuffix("_api").removesuffix("_API")
        wanted = {
            node: row
            for node, row in json.loads(path.read_text()).items()
            if row["class_type"] in known
        }
        if wanted:
            pairs.append((PREDECESSOR / "example_workflows" / f"{name}.json", wanted))
    assert len(pairs) >= 10

    async def check(page: Any) -> None:
        for path, wanted in pairs:
            workflow = path.read_text()
            await page.evaluate(
                f"app.loadGraphData({workflow}).then(() => true).catch((e) => String(e))"
            )
            exported = json.loads(
                await page.evaluate("app.graphToPrompt().then((p) => JSON.stringify(p.output))")
            )
            for node, row in wanted.items():
                assert exported[node]["class_type"] == row["class_type"], path.name
                inputs = exported[node]["inputs"]
                assert {k: inputs[k] for k in row["inputs"]} == row["inputs"], path.name
                if "eject_models" in inputs:
                    assert inputs["keep_loaded"] is True  # new: its default

    on_page(server, check)
