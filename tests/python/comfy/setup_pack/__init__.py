# SPDX-License-Identifier: Apache-2.0
"""A custom node for tests only: gives ComfyUI simulated devices and lets a test look inside.

Started as `main.py --cpu` by `comfy_harness.server`, alone in the first custom node folder, so it is
imported before every other pack. `DISTORCH_TEST_CONFIG` holds JSON: `capacities` (bytes of each
simulated device; none for ComfyUI on the processor alone), `dynamic` (run ComfyUI's DynamicVRAM, with stand-ins for the library below it).
"""

from __future__ import annotations

import asyncio
import json
import os
import traceback

import comfy.model_management
import comfy.model_patcher
import torch
from aiohttp import web
from server import PromptServer

from . import probe_nodes

# What the pack must leave as it is; taken before the pack is imported.
CORE = {
    "ModelPatcher": comfy.model_patcher.ModelPatcher,
    "LoadedModel": comfy.model_management.LoadedModel,
    "partially_load": comfy.model_patcher.ModelPatcher.partially_load,
    "load": comfy.model_patcher.ModelPatcher.load,
}
CONFIG = json.loads(os.environ["DISTORCH_TEST_CONFIG"])
if CONFIG["capacities"]:
    from . import devices

    devices.install(CONFIG["capacities"])
if CONFIG["dynamic"]:
    from . import dynamic_vram

    dynamic_vram.install()
CORE["CoreModelPatcher"] = getattr(comfy.model_patcher, "CoreModelPatcher", None)

NODE_CLASS_MAPPINGS = probe_nodes.NODE_CLASS_MAPPINGS


def changed_core_objects() -> list[str]:
    """Names of `CORE` that are not the core's own objects any more."""
    now = {
        **{n: getattr(comfy.model_patcher, n, None) for n in ("ModelPatcher", "CoreModelPatcher")},
        "LoadedModel": comfy.model_management.LoadedModel,
        "partially_load": comfy.model_patcher.ModelPatcher.partially_load,
        "load": comfy.model_patcher.ModelPatcher.load,
    }
    return [name for name, value in now.items() if value is not CORE[name]]


torch.distorch_test_changed_core_objects = changed_core_objects
_namespace: dict[str, object] = {"torch": torch, "changed_core_objects": changed_core_objects}


def _evaluate(code: str) -> dict[str, object]:
    """Runs `code`; what it leaves in `result` is the answer. Names stay from call to call."""
    _namespace["result"] = None
    try:
        exec(code, _namespace)  # noqa: S102 - the purpose of this route; never installed by a user
        return {"result": _namespace["result"]}
    except Exception:
        return {"error": traceback.format_exc()}


@PromptServer.instance.routes.post("/distorch_test/eval")
async def evaluate(request: web.Request) -> web.Response:
    body = await request.json()
    answer = await asyncio.to_thread(_evaluate, body["code"])
    return web.json_response(answer, dumps=lambda value: json.dumps(value, default=str))
