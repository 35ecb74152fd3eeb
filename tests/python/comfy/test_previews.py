# SPDX-License-Identifier: Apache-2.0
"""Latent previews of placed models, as a browser gets them over the websocket: those of a plain run."""

from __future__ import annotations

import asyncio
import json
import pathlib
import struct
import uuid
from collections.abc import Iterator

import aiohttp
import pytest
import torch
from comfy_harness import ComfyServer, Result, Workflow, state, versions, wan

pytestmark = pytest.mark.comfy

STEPS = 4
PREVIEW, JPEG = 1, 1  # ComfyUI's binary event of a preview, and its type of image


@pytest.fixture(scope="module", params=versions() or [None], ids=lambda v: v.name if v else "none")
def comfy(
    request: pytest.FixtureRequest,
    comfy_models: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComfyServer]:
    """A server that sends previews."""
    if request.param is None:
        pytest.skip("COMFYUI_PATH is not set")
    base = tmp_path_factory.mktemp("previews")
    (base / "models").symlink_to(comfy_models)
    server = ComfyServer(request.param, base, arguments=["--preview-method", "latent2rgb"])
    yield server
    server.stop()


async def _watched(comfy: ComfyServer, workflow: Workflow) -> tuple[Result, list[bytes]]:
    client, images = uuid.uuid4().hex, []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{comfy.port}/ws?clientId={client}") as socket,
    ):
        running = asyncio.create_task(asyncio.to_thread(comfy.run, workflow, client=client))
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                event, kind = struct.unpack(">II", message.data[:8])
                if event == PREVIEW:
                    assert kind == JPEG
                    images.append(message.data[8:])
            elif message.type == aiohttp.WSMsgType.TEXT:
                told = json.loads(message.data)
                if told["type"] == "executing" and told["data"]["node"] is None:
                    break  # the prompt has ended
            if running.done():  # refused: the messages of this prompt never come
                await running
        return await running, images


def watched(comfy: ComfyServer, workflow: Workflow) -> tuple[Result, list[bytes]]:
    """Run a workflow; its result, and the images that came while it ran."""
    return asyncio.run(asyncio.wait_for(_watched(comfy, workflow), 240))


@pytest.mark.parametrize(
    "expert", ["sim:0,20%;cpu,*", "sim:0,45%;sim:1,*,mode=migrate"], ids=["stream", "migrate"]
)
def test_a_placed_model_shows_the_previews_of_a_plain_run(comfy: ComfyServer, expert: str) -> None:
    comfy.free()
    plain, expected = watched(comfy, wan(None, STEPS))
    assert len(expected) == STEPS
    assert all(image.startswith(b"\xff\xd8") for image in expected), "JPEG"
    assert len(set(expected)) > 1, "the image changes from step to step"
    comfy.free()
    placed, images = watched(comfy, wan(expert, STEPS))
    assert torch.equal(placed.values["wan"], plain.values["wan"])
    assert images == expected
    now = state(comfy).placed("WAN21")
    if "migrate" in expert:
        assert now["migrated"].get("sim:1", 0) >= 1
    else:
        assert now["streamed_bytes"] > 0
    comfy.free()
