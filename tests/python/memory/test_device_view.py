# SPDX-License-Identifier: Apache-2.0
"""The parts of a device's bar always add up, whoever owns the memory of a model."""

from __future__ import annotations

from typing import Any

import distorch_sim
import pytest
import torch

from distorch import devices, memory

MB = 2**20


def row(owned: int, outside: int = 0) -> memory.Row:
    held = {"sim:0": owned + outside}
    return memory.Row(1, "m", "model", "M", held, 1, 1, 1, "", owned={"sim:0": owned},
                    outside={"sim:0": outside} if outside else {})  # fmt: skip


def bar(*rows: memory.Row) -> dict[str, Any]:
    (found,) = (v for v in memory.device_view(rows) if v["device"] == "sim:0")
    parts = ("models", "tensors", "unused", "other", "free")
    assert sum(found[part] for part in parts) == found["total"]
    return {part: found[part] // MB for part in parts}


@pytest.fixture
def ten() -> Any:
    """A device of 100 MB with 10 MB in tensors."""
    distorch_sim.install([100 * MB])
    kept = torch.empty(10 * MB, dtype=torch.uint8, device="sim:0")
    yield kept
    del kept


def test_a_models_tensors_are_its_own(ten: torch.Tensor) -> None:
    assert bar(row(4 * MB)) == {"models": 4, "tensors": 6, "unused": 0, "other": 0, "free": 90}
    assert bar() == {"models": 0, "tensors": 10, "unused": 0, "other": 0, "free": 90}


def test_pages_in_torchs_memory_are_no_other_tensors(ten: torch.Tensor) -> None:
    found = bar(row(4 * MB, outside=5 * MB))
    assert found == {"models": 9, "tensors": 1, "unused": 0, "other": 0, "free": 90}


def test_pages_of_another_library_are_no_other_processes(
    ten: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.sim, "mem_get_info", lambda index: (70 * MB, 100 * MB))
    found = bar(row(4 * MB, outside=15 * MB))
    assert found == {"models": 19, "tensors": 6, "unused": 0, "other": 5, "free": 70}


def test_more_than_there_is_cannot_be_shown(ten: torch.Tensor) -> None:
    found = bar(row(4 * MB, outside=50 * MB))
    assert found == {"models": 10, "tensors": 0, "unused": 0, "other": 0, "free": 90}


def test_looking_at_a_device_does_not_initialise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, asking a device that nobody uses for its memory would take some hundred MB of it."""
    distorch_sim.install([100 * MB, 100 * MB])
    asked: list[int] = []

    def mem_get_info(index: int) -> tuple[int, int]:
        asked.append(index)
        return 90 * MB, 100 * MB

    monkeypatch.setattr(torch.sim, "mem_get_info", mem_get_info)
    monkeypatch.setattr(devices, "has_context", lambda kind, index: index == 0)
    found = [view["device"] for view in memory.device_view([])]
    assert set(asked) == {0}
    assert "sim:0" in found
    assert "sim:1" not in found, "its memory is not known without NVML"


def test_an_unused_device_is_as_nvml_says(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = devices.DeviceInfo("cuda:1", "cuda", 1, "NVIDIA X", 100 * MB, 60 * MB, initialized=False)
    monkeypatch.setattr(devices, "list_devices", lambda: [gpu])
    assert memory.device_view([]) == [
        {"device": "cuda:1", "name": "NVIDIA X", "total": 100 * MB, "free": 60 * MB, "models": 0,
         "tensors": 0, "unused": 0, "other": 40 * MB}
    ]  # fmt: skip


def test_memory_that_torch_keeps_for_later_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = devices.DeviceInfo("sim:0", "sim", 0, "S", 100 * MB, 70 * MB, 10 * MB, 30 * MB)
    monkeypatch.setattr(devices, "list_devices", lambda: [gpu])
    assert bar(row(4 * MB)) == {"models": 4, "tensors": 6, "unused": 20, "other": 20, "free": 50}


def test_a_device_that_is_lost_does_not_hide_the_others(
    ten: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(index: int) -> Any:
        raise RuntimeError("CUDA error: device is lost")

    monkeypatch.setattr(torch.sim, "mem_get_info", lost)
    assert "cpu" in [view["device"] for view in memory.device_view([])]
