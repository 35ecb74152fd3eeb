# SPDX-License-Identifier: Apache-2.0
"""A run that is broken off at any block, or whose page goes away: over within that block, and nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid

import aiohttp
import pytest
import torch
from comfy_harness import ComfyServer, Result, Workflow, state, wan

pytestmark = pytest.mark.comfy

STEPS = 3
MODES = {"stream": "sim:0,45%;cpu,*", "migrate": "sim:0,45%;sim:1,*,mode=migrate"}

# Interrupts, as the button does, when block `AT` of `_blocks` begins for the second time; notes what begins.
ARM = """
import comfy.model_management as mm
import nodes as _nodes
def _arm():
    import gc
    (model,) = {o for o in gc.get_objects()
                if type(o).__name__ == "WAN21" and getattr(o, "_distorch_placed", None) is not None}
    handles, begun = [], []
    def begins(number):
        def hook(*_):
            begun.append(number)
            if number == AT and begun.count(number) == 2:
                _nodes.interrupt_processing()
        return hook
    blocks = model.diffusion_model.blocks
    for number, block in enumerate(blocks):
        handles.append(block.register_forward_pre_hook(begins(number)))
    return handles, begun, len(blocks)
_handles, _begun, _count = _arm()
result = _count
"""
ASKS = """
import inspect, comfy.ops
result = "throw_exception_if_processing_interrupted" in inspect.getsource(comfy.ops)
"""
BEGUN = """
for _handle in _handles:
    _handle.remove()
result = list(_begun)
"""


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_at_any_block_ends_the_run_within_it(comfy: ComfyServer, mode: str) -> None:
    reference = comfy.run(seeded(wan(None, STEPS), 99)).values["wan"]
    comfy.free()
    asks_within_a_step = comfy.evaluate(ASKS)
    placed = wan(MODES[mode], STEPS)
    comfy.run(placed)
    held = allocated(comfy)
    at, count = 0, 1
    while at < count:
        count = comfy.evaluate(ARM.replace("AT", str(at)))
        with pytest.raises(Exception, match=r"(?i)interrupt"):
            comfy.run(seeded(placed, at + 1))
        begun = comfy.evaluate(BEGUN)
        last = at + 1 if asks_within_a_step else count  # ComfyUI 0.3.64 asks between steps only
        assert begun == [*range(count), *range(last)], "no block begins after it"
        assert allocated(comfy) == held, at
        at += 1
    assert count > 2
    assert torch.equal(comfy.run(seeded(placed, 99)).values["wan"], reference)
    assert allocated(comfy) == held


def allocated(comfy: ComfyServer) -> dict[str, int]:
    """Bytes of each device, the frames of what raised not counted."""
    comfy.evaluate("import gc; gc.collect(); result = None")
    return state(comfy).allocated


def seeded(workflow: Workflow, more: int) -> Workflow:
    """The workflow with another seed, so that nothing comes from ComfyUI's cache."""
    changed = Workflow(json.loads(json.dumps(workflow)))
    for node in changed.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["seed"] += more
    return changed


async def _abandoned(comfy: ComfyServer, workflow: Workflow) -> Result:
    """Run a workflow for a page whose connection breaks, without a word, in the first step."""
    client = uuid.uuid4().hex
    async with aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"http://127.0.0.1:{comfy.port}/ws?clientId={client}")
        running = asyncio.create_task(asyncio.to_thread(comfy.run, workflow, client=client))
        async for message in socket:
            text = json.loads(message.data) if message.type == aiohttp.WSMsgType.TEXT else {}
            if text.get("type") == "progress":
                break
            assert not running.done(), "it ended before it was seen to progress"
        connection = socket._response.connection
        assert connection is not None
        connection.transport.abort()
        return await running


@pytest.mark.parametrize("mode", MODES)
def test_a_run_goes_on_to_its_right_end_when_its_page_is_killed(
    comfy: ComfyServer, mode: str
) -> None:
    reference = comfy.run(wan(None, steps=6)).values["wan"]
    comfy.free()
    workflow = wan(MODES[mode], steps=6)
    result = asyncio.run(asyncio.wait_for(_abandoned(comfy, workflow), 240))
    assert torch.equal(result.values["wan"], reference)
    end = time.monotonic() + 60
    while comfy.evaluate("import server; result = len(server.PromptServer.instance.sockets)"):
        assert time.monotonic() < end, "the server still counts the page"
        time.sleep(0.05)
    comfy.free()
    assert set(state(comfy).allocated.values()) == {0}
