# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests inside real ComfyUI: see README.md beside this file."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from comfy_harness import ComfyServer, Start, models, versions

NEWEST_AND_OLDEST = [versions()[0], versions()[-1]] if versions() else [None]

#: comfy-kitchen keeps the sixteen numbers of nvfp4, 64 bytes, on each device that computed with them.
FORGET_TABLES = """
import sys
getattr(sys.modules.get("comfy_kitchen.backends.eager.quantization"), "E2M1_LUT_CACHE", {}).clear()
result = None
"""


@pytest.fixture(scope="session")
def comfy_models(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A models folder with the standard set, written once."""
    folder = tmp_path_factory.mktemp("models")
    models.write_all(folder)
    return folder


@pytest.fixture(scope="session", params=versions() or [None], ids=lambda v: v.name if v else "none")
def _server(
    request: pytest.FixtureRequest,
    comfy_models: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComfyServer]:
    """A server for each checkout of COMFYUI_PATH, DynamicVRAM on and off; three devices of 8 GB."""
    if request.param is None:
        pytest.skip("COMFYUI_PATH is not set")
    base = tmp_path_factory.mktemp(request.param.name)
    (base / "models").symlink_to(comfy_models)
    server = ComfyServer(request.param, base)
    yield server
    server.stop()


@pytest.fixture
def comfy(_server: ComfyServer) -> ComfyServer:
    """The server, with nothing kept from the test before."""
    _server.free()
    _server.evaluate(FORGET_TABLES)
    return _server


@pytest.fixture(params=NEWEST_AND_OLDEST, ids=lambda v: v.name if v else "none")
def start(
    request: pytest.FixtureRequest, comfy_models: pathlib.Path, tmp_path: pathlib.Path
) -> Iterator[Start]:
    """Starts a server with devices of given sizes, or other arguments; it ends with the test."""
    servers: list[ComfyServer] = []

    def begin(*capacities: int, **more: Any) -> ComfyServer:
        (tmp_path / "models").symlink_to(comfy_models)
        if capacities:
            more["capacities"] = capacities
        servers.append(ComfyServer(request.param, tmp_path, **more))
        return servers[-1]

    if request.param is None:
        pytest.skip("COMFYUI_PATH is not set")
    yield begin
    for server in servers:
        server.stop()
