# SPDX-License-Identifier: Apache-2.0
"""Caps hold, what is given back is exact, and out of memory leaves everything as it was."""

from __future__ import annotations

import gc
import os

import pytest
import torch
from gpu import MIB, Gpu, deep, resident, tokens

import distorch
from distorch import caches
from distorch.allocation import Device
from distorch.eject import Registry

pytestmark = pytest.mark.cuda

# What torch's allocator rounds each tensor up to.
ROUNDING = 512


def rounding(gpu: Gpu, tensors: int) -> int:
    return ROUNDING * tensors if gpu.hardware else 0


@pytest.mark.hardware_only
def test_the_allocator_is_the_one_that_was_asked_for(gpu: Gpu) -> None:
    asked = os.environ.get("DISTORCH_ALLOCATOR", "native")
    backend = "cudaMallocAsync" if asked == "async" else "native"
    assert torch.cuda.get_allocator_backend() == backend
    torch.empty(8 * MIB, dtype=torch.uint8, device=gpu.device)
    if backend == "native":
        kinds = {segment.get("is_expandable") for segment in torch.cuda.memory_snapshot()}
        assert (True in kinds) is (asked == "expandable")


@pytest.mark.parametrize("share", ["0%", "30%", "60%"])
def test_the_peak_is_the_share_and_the_slots(gpu: Gpu, share: str) -> None:
    model = deep(gpu)
    count = sum(1 for _ in model.parameters()) + sum(1 for _ in model.buffers())
    x = tokens(model, gpu)
    expected = resident(model, gpu, x)  # also makes what CUDA's libraries keep
    gc.collect()
    base = gpu.allocated()
    gpu.reset_peak()
    resident(model, gpu, x)
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    activations = gpu.peak() - base - weights
    gpu.reset_peak()
    placed = distorch.place_string(model, f"{gpu},{share};cpu,*", compute=gpu.name)
    there = placed.bytes_per_device().get(gpu.name, 0)
    assert there <= float(share[:-1]) / 100 * weights
    assert gpu.peak() - base <= there + rounding(gpu, count), "loading takes no more than the share"
    executor = distorch.StreamedExecutor(placed)
    limit = there + 2 * executor.slot_bytes + activations + rounding(gpu, 3 * count)
    for _ in range(4):
        assert torch.equal(model(x).cpu(), expected)
    assert gpu.peak() - base <= limit
    placed.unload()


def test_eject_gives_back_exactly_what_was_taken(gpu: Gpu) -> None:
    model, other = deep(gpu), deep(gpu)
    x = tokens(model, gpu)
    registry = Registry()
    kept = registry.manage(distorch.place_string(other, f"{gpu},*", compute=gpu.name), "kept")
    expected = other(x).cpu()
    held = kept.placed.bytes_per_device()
    allocated, free = [], []
    for _ in range(3):  # the first one makes what CUDA's libraries keep
        allocated.append(gpu.allocated())
        free.append(gpu.free())
        placed = distorch.place_string(model, f"{gpu},40%;cpu,*", compute=gpu.name)
        executor = distorch.StreamedExecutor(placed)
        for _ in range(3):
            model(x)
        taken = placed.bytes_per_device()[gpu.name] + 2 * executor.slot_bytes
        handle = registry.manage(placed, "ejected")
        handle.eject = True
        del placed, executor, handle
        report = registry.eject_flagged()
        assert [m.name for m in report.unloaded] == ["ejected"]
        assert [m.name for m in report.stay] == ["kept"]
        assert report.failures == []
        (row,) = [d for d in report.devices if d.device == gpu.name]
        assert row.freed >= taken
        assert row.after == row.before - row.freed
        (holder,) = row.holders
        assert holder.startswith("kept (")
    allocated.append(gpu.allocated())
    free.append(gpu.free())
    assert allocated[1] == allocated[2] == allocated[3]
    assert free[1] == free[2] == free[3]
    assert kept.placed.bytes_per_device() == held
    assert torch.equal(other(x).cpu(), expected)
    kept.placed.unload()


def test_with_nothing_flagged_the_device_is_not_called(gpu: Gpu) -> None:
    model = deep(gpu)
    x = tokens(model, gpu)
    registry = Registry()
    placed = distorch.place_string(model, f"{gpu},40%;cpu,*", compute=gpu.name)
    distorch.StreamedExecutor(placed)
    for _ in range(3):
        model(x)
    registry.manage(placed, "kept")
    gpu.synchronize()
    with gpu.calls() as some:
        torch.ones(16, device=gpu.device).sum().item()
    assert some, "calls are seen at all"
    with gpu.calls() as calls:
        report = registry.eject_flagged()
    # The profiler itself waits for the device at its end.
    assert [call for call in calls if call != "cudaDeviceSynchronize"] == []
    assert str(report) == "no model is flagged, nothing is unloaded\nstill loaded: kept"
    placed.unload()


def test_the_caches_of_all_devices_are_cleared(gpu: Gpu) -> None:
    count = gpu.module.device_count()
    names = [f"{gpu.kind}:{index}" for index in range(count)]
    tensors = [torch.empty(8 * MIB, dtype=torch.uint8, device=name) for name in names]
    before = {name: gpu.module.memory_reserved(i) for i, name in enumerate(names)}
    current = gpu.module.current_device()
    del tensors
    report = caches.clear_caches()
    assert set(report.before) >= set(names)
    for index, name in enumerate(names):
        assert gpu.module.memory_reserved(index) <= before[name] - 8 * MIB
    assert gpu.module.current_device() == current


def test_no_room_for_the_share(gpu: Gpu) -> None:
    model = deep(gpu, layers=4, width=2048 if gpu.hardware else 0)
    x = tokens(model, gpu)
    expected = resident(model, gpu, x)
    before = {name: id(p) for name, p in model.named_parameters()}
    weights = sum(p.nbytes for p in model.parameters())
    room = gpu.free()  # as it was before others took the memory
    table = [Device(device=name, total=room, free=room) for name in (gpu.name, "cpu")]
    gc.collect()
    allocated = gpu.allocated()
    with gpu.only(weights // 2), pytest.raises(torch.OutOfMemoryError):
        distorch.place_string(model, f"{gpu},*", compute=gpu.name, devices=table)
    gc.collect()
    assert gpu.allocated() == allocated
    assert {name: id(p) for name, p in model.named_parameters()} == before
    placed = distorch.place_string(model, f"{gpu},*", compute=gpu.name)
    assert torch.equal(model(x).cpu(), expected)
    placed.unload()


def test_no_room_for_the_slots(gpu: Gpu) -> None:
    model = deep(gpu, layers=4, width=2048 if gpu.hardware else 0)
    x = tokens(model, gpu)
    expected = resident(model, gpu, x)
    placed = distorch.place_string(model, "cpu,*", compute=gpu.name)
    group = sum(p.nbytes for p in model.layers[0].parameters())
    allocated = gpu.allocated()
    with gpu.only(group), pytest.raises(torch.OutOfMemoryError):
        distorch.StreamedExecutor(placed)
    gc.collect()
    assert gpu.allocated() == allocated
    placed.verify()
    assert torch.equal(model(x).cpu(), expected), "module by module"
    executor = distorch.StreamedExecutor(placed)
    assert len(executor.streamed) == 4
    assert torch.equal(model(x).cpu(), expected)
    placed.unload()


def test_no_room_in_a_step(gpu: Gpu) -> None:
    model = deep(gpu)
    x = tokens(model, gpu)
    many = tokens(model, gpu, 4096 if gpu.hardware else 512)
    expected = resident(model, gpu, x)
    placed = distorch.place_string(model, f"{gpu},30%;cpu,*", compute=gpu.name)
    distorch.StreamedExecutor(placed)
    for _ in range(3):
        model(x)
    room = 4 * MIB if gpu.hardware else x.nbytes
    with gpu.only(room), pytest.raises(torch.OutOfMemoryError):
        model(many)
    for step in range(3):
        assert torch.equal(model(x).cpu(), expected), step
    placed.unload()


def test_ten_models_one_behind_the_other(gpu: Gpu) -> None:
    allocated = []
    expected = None
    for _ in range(10):
        model = deep(gpu, layers=4)
        x = tokens(model, gpu)
        expected = resident(model, gpu, x) if expected is None else expected
        placed = distorch.place_string(model, f"{gpu},30%;cpu,*", compute=gpu.name)
        distorch.StreamedExecutor(placed)
        for _ in range(2):
            assert torch.equal(model(x).cpu(), expected)
        placed.unload()
        del placed, model, x
        gc.collect()
        allocated.append(gpu.allocated())
    assert len(set(allocated[1:])) == 1, allocated
