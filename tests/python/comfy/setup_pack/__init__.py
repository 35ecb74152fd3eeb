# SPDX-License-Identifier: Apache-2.0
"""A custom node for tests only: gives ComfyUI simulated devices and lets a test look inside.

Started as `main.py --cpu` by `comfy_harness.server`, alone in the first custom node folder, so it is
imported before every other pack. `DISTORCH_TEST_CONFIG` holds JSON: `capacities` (bytes of each
simulated device), `dynamic` (run ComfyUI's DynamicVRAM, with stand-ins for the library below it).
"""

from __future__ import annotations

import asyncio
import json
import os
import traceback

import torch
from aiohttp import web
from server import PromptServer

from . import devices, probe_nodes

CONFIG = json.loads(os.environ["DISTORCH_TEST_CONFIG"])
devices.install(CONFIG["capacities"])
if CONFIG["dynamic"]:
    from . import dynamic_vram

    dynamic_vram.install()

NODE_CLASS_MAPPINGS = probe_nodes.NODE_CLASS_MAPPINGS
_namespace: dict[str, object] = {"torch": torch}


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
