# SPDX-License-Identifier: Apache-2.0
"""The predecessor's module names, and a cleanup that waits for the worker."""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pack_import import NAME

MB = 2**20


@pytest.fixture
def old(pack: Any) -> Iterator[Callable[[str], Any]]:
    names = pack.load("nodes.old_names")
    names.install(NAME)
    yield lambda name: importlib.import_module(f"{NAME}.{name}")
    names.uninstall(NAME)


def test_the_functions_have_their_names_and_work(
    old: Any, pack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    management, utils = old("model_management_mgpu"), old("device_utils")
    assert pack.module.device_utils is utils
    assert utils.get_device_list() == ["cpu", "sim:0", "sim:1", "sim:2"]
    assert utils.get_device_list() is not utils.get_device_list()
    assert utils.is_accelerator_available()
    assert utils.is_device_compatible("sim:2")
    assert not utils.is_device_compatible("sim:3")
    assert utils.get_device_type("sim:1") == "sim"
    assert utils.parse_device_string("sim:1") == ("sim", 1)
    assert utils.parse_device_string("cpu") == ("cpu", None)
    assert utils.comfyui_memory_load("now").startswith("tag=now|cpu=")
    assert management.multigpu_memory_log("a", "b").startswith("tag=b|cpu=")
    assert "=== memory over 1 snapshots" in management.multigpu_memory_log("print_summary", "")
    with caplog.at_level(logging.INFO, "DisTorch"):
        management.logger.mgpu_mm_log("a line with % in it")
        logging.getLogger("MultiGPU").mgpu_mm_log("another")
        management.logger.focus("model %s", "a")
    assert caplog.messages == ["[memory] a line with % in it", "[memory] another", "model a"]
    assert caplog.records[-1].levelname == "FOCUS"
    assert logging.INFO < caplog.records[-1].levelno < logging.WARNING


def test_caches_are_cleared_by_the_old_names(old: Any, comfy: Any) -> None:
    utils = old("device_utils")
    tensor = torch.empty(MB, device="sim:1")
    del tensor
    calls = torch.sim.empty_cache_calls
    assert "sim:1" in utils.soft_empty_cache_multigpu().before
    assert torch.sim.empty_cache_calls > calls
    utils.soft_empty_cache_distorch2_patched(True)
    assert comfy.calls == ["soft_empty_cache"]
    old("model_management_mgpu")._mgpu_patched_unload_all_models()
    assert comfy.calls[-1] == "unload_all_models"


def test_percentages_stay_percentages(
    old: Any, pack: Any, comfy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = types.SimpleNamespace(total_and_available=lambda: (100, 40))
    monkeypatch.setattr(pack.load("patches.ejecting.cleanup"), "hostmemory", full)
    management = old("model_management_mgpu")
    assert not management.check_cpu_memory_threshold(threshold_percent=70.0)
    assert management.check_cpu_memory_threshold(threshold_percent=50.0)
    assert comfy.queue.flags == {"free_memory": True}
    assert management.trigger_executor_cache_reset("test", force=True)
    assert comfy.queue.flags == {"free_memory": True, "unload_models": True}


class Worker(threading.Thread):
    """Does with the queue's flags what ComfyUI's worker does; each takes what `held` holds from a device."""

    def __init__(self, queue: Any, jobs: Any, held: list[Any]) -> None:
        super().__init__(daemon=True)
        self.queue, self.jobs, self.held, self.ended = queue, jobs, held, False
        self.seen: list[dict[str, Any]] = []

    def run(self) -> None:
        while not self.ended:
            with self.queue.mutex:
                self.queue.not_empty.wait(0.05)
            self.jobs._run_waiting()
            with self.queue.mutex:
                flags, self.queue.flags = self.queue.flags, {}
            if flags.get("unload_models"):
                self.held.clear()
            if flags:
                self.seen.append(flags)
            self.jobs._finish()


@pytest.fixture
def worker(pack: Any, comfy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    between = pack.load("patches.seams.between_prompts")
    jobs = between.BetweenPrompts(comfy.queue, dict, lambda: None)
    monkeypatch.setitem(between.installed, id(comfy.queue), jobs)
    worker = Worker(comfy.queue, jobs, [torch.empty(8 * MB, dtype=torch.uint8, device="sim:1")])
    worker.start()
    yield worker
    worker.ended = True
    worker.join()


def test_a_cleanup_reports_what_each_device_gave_back(pack: Any, worker: Worker) -> None:
    report = pack.load("patches.ejecting.cleanup").force_full_system_cleanup("test")
    assert report.done
    assert report["sim:1"]["freed"] == 8 * MB
    assert report["sim:0"]["freed"] == 0
    assert f"sim:1: {8 * MB} bytes given back" in str(report)
    (flags,) = worker.seen
    assert flags["unload_models"] is flags["free_memory"] is True


@pytest.mark.parametrize("where", ["in a prompt", "in a loop", "without force"])
def test_a_cleanup_never_waits_for_itself(
    pack: Any, comfy: Any, worker: Worker, where: str
) -> None:
    cleanup = pack.load("patches.ejecting.cleanup").force_full_system_cleanup

    async def in_a_loop() -> Any:
        return cleanup("test")

    comfy.queue.currently_running = {1: "prompt"} if where == "in a prompt" else {}
    report = asyncio.run(in_a_loop()) if where == "in a loop" else cleanup("t", where[0] != "w")
    assert not report.done
    assert report["sim:1"]["used"] >= 8 * MB
    assert report["sim:1"]["freed"] == 0


@pytest.mark.parametrize("force", [False, True])
def test_without_force_a_running_prompt_is_left_alone(
    pack: Any, comfy: Any, worker: Worker, force: bool
) -> None:
    worker.ended = True
    worker.join()
    comfy.queue.currently_running = {1: "prompt"}
    pack.load("patches.ejecting.cleanup").force_full_system_cleanup("test", force)
    asked = {"unload_models": True, "free_memory": True} if force else {}
    assert {k: v for k, v in comfy.queue.flags.items() if k != "distorch"} == asked


def test_a_worker_that_never_comes_is_not_waited_for_long(
    pack: Any, comfy: Any, worker: Worker
) -> None:
    worker.ended = True
    worker.join()
    assert (
        not pack.load("patches.ejecting.cleanup")
        .force_full_system_cleanup("test", timeout=0.1)
        .done
    )
