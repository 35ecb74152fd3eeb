# SPDX-License-Identifier: Apache-2.0
"""Copies and computing are in order whatever takes long, and memory of slots is not given away under a copy."""

from __future__ import annotations

import gc
import random
import time
import weakref

import pytest
import torch
from gpu import MIB, Deep, Gpu, deep, resident, tokens

import distorch

pytestmark = pytest.mark.cuda

CAPS = {"pinned": None, "pageable": 0, "mixed": 0.5}


def all_streamed(
    model: Deep, gpu: Gpu, pinning: str = "pinned"
) -> tuple[distorch.PlacedModel, distorch.StreamedExecutor]:
    placed = distorch.place_string(model, "cpu,*", compute=gpu.name)
    cap = CAPS[pinning]
    away = placed.bytes_per_device()["cpu"]
    executor = distorch.StreamedExecutor(placed, pin_cap=None if cap is None else int(cap * away))
    assert len(executor.streamed) == len(model.layers)
    for layer in model.layers:
        layer.gpu = gpu
    return placed, executor


def steady(model: Deep, executor: distorch.StreamedExecutor, x: torch.Tensor) -> None:
    """Run until every group is copied anew in each step: only then may its weights be spoiled behind its use."""
    for _ in range(3):
        before = executor.bytes_copied
        model(x)
    assert executor.bytes_copied - before == executor.bytes_per_step > 0


@pytest.mark.parametrize("pinning", list(CAPS))
def test_slow_layers_and_slots_with_nan_before_and_behind_their_use(gpu: Gpu, pinning: str) -> None:
    model = deep(gpu)
    x = tokens(model, gpu)
    expected = resident(model, gpu, x)
    gpu.spoil(4 * sum(p.nbytes for p in model.layers[0].parameters()))
    placed, executor = all_streamed(model, gpu, pinning)
    assert torch.equal(model(x).cpu(), expected)
    steady(model, executor, x)
    chance = random.Random(1)
    for step in range(6):
        for layer in model.layers:
            layer.sleep, layer.poison = chance.choice([0, 0, 2, 8]), True
        assert torch.equal(model(x).cpu(), expected), step
    placed.unload()


def test_steps_without_a_wait_between_them(gpu: Gpu) -> None:
    model = deep(gpu)
    x = tokens(model, gpu)
    expected = resident(model, gpu, x)
    placed, executor = all_streamed(model, gpu)
    steady(model, executor, x)
    for layer in model.layers:
        layer.sleep, layer.poison = 1, True
    results = [model(x) for _ in range(6)]
    assert [torch.equal(result.cpu(), expected) for result in results] == [True] * 6
    placed.unload()


@pytest.mark.parametrize("pinning", ["pinned", "pageable"])
def test_a_model_that_just_dies_leaves_its_slots_when_the_copies_are_done(
    gpu: Gpu, pinning: str
) -> None:
    model = deep(gpu, layers=4, width=2048 if gpu.hardware else 0)
    x = tokens(model, gpu)
    placed, executor = all_streamed(model, gpu, pinning)
    for _ in range(3):
        model(x)
    before, slots = gpu.allocated(), 2 * executor.slot_bytes
    alive = weakref.ref(executor.engine)
    model(x)  # the next step's first group is on its way when this returns
    del model, placed, executor
    gc.collect()
    assert alive() is None
    assert gpu.allocated() <= before - slots
    # Whoever asks next gets that memory.
    canaries = [torch.full((2 * MIB if gpu.hardware else 1024,), 7, dtype=torch.uint8, device=gpu.device) for _ in range(slots // MIB + 8)]  # fmt: skip
    gpu.synchronize()
    assert all(bool((canary == 7).all()) for canary in canaries)


def test_letting_go_of_the_slots_while_a_copy_is_under_way(gpu: Gpu) -> None:
    model = deep(gpu, layers=4, width=2048 if gpu.hardware else 0)
    x = tokens(model, gpu)
    expected = resident(model, gpu, x)
    placed, executor = all_streamed(model, gpu)
    before = gpu.allocated() - 2 * executor.slot_bytes
    for _ in range(3):
        model(x)
    executor.detach()
    gc.collect()
    assert gpu.allocated() <= before
    assert torch.equal(model(x).cpu(), expected)
    placed.unload()


def test_an_error_in_the_middle_of_a_step(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep(gpu)
    x = tokens(model, gpu)
    expected = resident(model, gpu, x)
    placed, _ = all_streamed(model, gpu)
    for _ in range(2):
        model(x)
    for bad in (0, 3, 7):
        with monkeypatch.context() as patch:
            patch.setattr(model.layers[bad], "forward", _interrupted)
            with pytest.raises(InterruptedError, match="in the middle"):
                model(x)
        assert torch.equal(model(x).cpu(), expected), bad
    placed.unload()


def _interrupted(*_: object, **__: object) -> torch.Tensor:
    raise InterruptedError("in the middle")


@pytest.mark.hardware_only
def test_the_host_returns_before_the_device_is_done(gpu: Gpu) -> None:
    model = deep(gpu)
    x = tokens(model, gpu)
    placed, _ = all_streamed(model, gpu)
    for _ in range(5):
        model(x)
    for layer in model.layers:
        layer.sleep = 20
    gpu.synchronize()
    begin = time.perf_counter()
    model(x)
    host = time.perf_counter() - begin
    gpu.synchronize()
    whole = time.perf_counter() - begin
    assert whole > 0.08, "the layers keep the device busy"
    assert host < whole / 4
    placed.unload()
