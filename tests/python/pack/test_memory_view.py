# SPDX-License-Identifier: Apache-2.0
"""The memory view takes functions, listeners and threads, and gives them all back."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from distorch import memory
from distorch.memory import sampler

THREADS = {"distorch-view", "distorch-scan"}


class Server:
    """ComfyUI's server, as far as the view goes: a table of routes that is added at the start."""

    def __init__(self, queue: Any) -> None:
        self.prompt_queue, self.routes, self.app = queue, web.RouteTableDef(), web.Application()
        self.sockets: dict[str, Any] = {}

    def add_routes(self) -> None:
        self.app.add_routes(self.routes)


class Queue:
    """With the methods through which the worker asks for its flags and its next prompt."""

    def __init__(self) -> None:
        self.mutex, self.currently_running = threading.RLock(), {}

    def get(self, timeout: float | None = None) -> None: ...

    def get_flags(self, reset: bool = True) -> dict[str, Any]:
        return {}


class Core:
    """The modules that are wrapped."""

    def __init__(self) -> None:
        self.executor = type("PromptExecutor", (), {"add_message": lambda *_: None})
        self.execution = types.ModuleType("execution")
        self.execution.PromptExecutor = self.executor
        self.execution.get_output_data = lambda *_: None
        self.utils, self.base = (
            types.ModuleType("comfy.utils"),
            types.ModuleType("comfy.model_base"),
        )
        self.utils.ProgressBar = type("ProgressBar", (), {"update_absolute": lambda *_: None})
        self.base.BaseModel = type("BaseModel", (), {"apply_model": lambda *_: None})

    def taken(self) -> list[Any]:
        """Every function that the view may replace."""
        counters = [
            getattr(torch._C, name, None)
            for name in ("_cuda_memoryStats", "_cuda_resetPeakMemoryStats", "_xpu_memoryStats")
        ]
        return [
            vars(Server)["add_routes"], vars(Queue)["get"], vars(Queue)["get_flags"],
            vars(self.executor)["add_message"], self.execution.get_output_data,
            vars(self.utils.ProgressBar)["update_absolute"], vars(self.base.BaseModel)["apply_model"],
            *counters,
        ]  # fmt: skip


@pytest.fixture
def core(pack: Any, comfy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Core]:
    core, package = Core(), sys.modules["comfy"]
    monkeypatch.setitem(sys.modules, "execution", core.execution)
    for name, module in (("utils", core.utils), ("model_base", core.base)):
        monkeypatch.setitem(sys.modules, f"comfy.{name}", module)
        monkeypatch.setattr(package, name, module, raising=False)
    comfy.server.PromptServer.instance = Server(Queue())
    memory.scanner().stop()
    yield core
    pack.load("patches.view.memory_view").uninstall()
    memory.scanner().install_hooks()


def hooks() -> list[int]:
    module = torch.nn.modules.module
    return [
        len(getattr(module, f"_global_{kind}_registration_hooks"))
        for kind in ("parameter", "buffer", "module")
    ]


def sources() -> list[list[Any]]:
    scanner = memory.scanner()
    return [
        list(scanner._builder.managements),
        list(scanner._builder.outsides),
        list(scanner._users),
    ]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & THREADS


def test_uninstalling_gives_everything_back(core: Core, pack: Any) -> None:
    view = pack.load("patches.view.memory_view")
    functions, listening, asked = core.taken(), hooks(), sources()
    for _ in range(2):
        first = view.install()
        assert view.install() is first
        same = [a is b for a, b in zip(core.taken(), functions, strict=True)]
        assert same[:7] == [False] * 7
        assert same[7] is (functions[7] is None), "torch's counters"
        assert [now - before for now, before in zip(hooks(), listening, strict=True)] == [1] * 3
        assert sources() != asked
        assert threads() == THREADS
        assert sampler.sampler().running
        assert first.actions.jobs.finishing == [pack.load("patches.ejecting.unload").add_details]
        view.uninstall()
        view.uninstall()
        assert all(a is b for a, b in zip(core.taken(), functions, strict=True))
        assert hooks() == listening
        assert sources() == asked
        assert threads() == set()
        assert not sampler.sampler().running


def test_what_fails_on_the_way_leaves_nothing_behind(
    core: Core, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = pack.load("patches.view.memory_view")
    functions, listening, asked = core.taken(), hooks(), sources()

    def fails(*_: Any) -> None:
        raise RuntimeError("the table is closed")

    monkeypatch.setattr(view, "add_to_table", fails)
    with pytest.raises(RuntimeError, match="the table is closed"):
        view.install()
    assert all(a is b for a, b in zip(core.taken(), functions, strict=True))
    assert (hooks(), sources(), threads()) == (listening, asked, set())
    monkeypatch.undo()


def test_the_routes_that_stay_answer_404_until_it_is_back(
    core: Core, pack: Any, comfy: Any
) -> None:
    view = pack.load("patches.view.memory_view")
    server = comfy.server.PromptServer.instance

    async def ask() -> list[tuple[int, Any]]:
        view.install()
        server.add_routes()
        paths = ["/distorch/models", "/distorch/metrics", "/swissarmyknife/profiler/loaded_models"]
        answers = []
        async with TestServer(server.app) as running, ClientSession() as session:
            for step in (lambda: None, view.uninstall, view.install):
                step()
                for path in paths:
                    async with session.get(running.make_url(path)) as answer:
                        answers.append((answer.status, await answer.text()))
                url = running.make_url("/distorch/parse")
                async with session.post(url, json={"text": "cpu,*"}) as answer:
                    answers.append((answer.status, await answer.text()))
        return answers

    answers = asyncio.run(ask())
    assert [status for status, _ in answers] == [200] * 4 + [404] * 4 + [200] * 4
    assert all("the memory view is not installed" in text for _, text in answers[4:8])
    assert len([r for r in server.routes if r.path == "/distorch/models"]) == 1, "the same ones"
