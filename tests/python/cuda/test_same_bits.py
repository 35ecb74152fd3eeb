# SPDX-License-Identifier: Apache-2.0
"""A placed model gives the bits of the resident one, whichever way its weights come."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gpu import Deep, Gpu, deep, resident, tokens
from placing import lora
from torch import nn

import distorch
from distorch.patching import DiffPatch, Patches

pytestmark = pytest.mark.cuda

# Bytes that may be pinned, of the bytes that are streamed: all, none (all goes through a pinned buffer), half.
PINNING: dict[str, Callable[[int], int | None]] = {
    "pinned": lambda _: None,
    "pageable": lambda _: 0,
    "mixed": lambda streamed: streamed // 2,
}


def patches_for(model: Deep) -> Patches:
    width = model.head.weight.shape[1]
    return {
        "layers.0.qkv.weight": [lora(3 * width, width)],
        "layers.1.out.weight": [lora(width, width, seed=4), lora(width, width, rank=2, seed=5)],
        "layers.2.mlp.0.weight": [DiffPatch(torch.full((2 * width, width), 0.25), 0.5)],
        "layers.7.mlp.2.bias": [DiffPatch(torch.ones(width))],
    }


def streamed(
    model: nn.Module, gpu: Gpu, pinning: str, *, share: str = "30%", patches: Patches | None = None
) -> tuple[distorch.PlacedModel, distorch.StreamedExecutor]:
    placed = distorch.place_string(model, f"{gpu},{share};cpu,*", compute=gpu.name, patches=patches)
    away = placed.bytes_per_device()["cpu"]
    return placed, distorch.StreamedExecutor(placed, pin_cap=PINNING[pinning](away))


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "lora"])
def test_module_by_module(gpu: Gpu, patched: bool) -> None:
    model = deep(gpu)
    x = tokens(model, gpu)
    patches = patches_for(model) if patched else None
    whole = distorch.place_string(model, f"{gpu},*", compute=gpu.name, patches=patches)
    expected = model(x).cpu()
    whole.unload()
    assert torch.equal(expected, resident(model, gpu, x)) is not patched
    placed = distorch.place_string(model, f"{gpu},30%;cpu,*", compute=gpu.name, patches=patches)
    for step in range(2):
        assert torch.equal(model(x).cpu(), expected), step
    placed.unload()
    assert torch.equal(resident(model, gpu, x), expected) is not patched


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("pinning", list(PINNING))
def test_streamed(gpu: Gpu, pinning: str, patched: bool) -> None:
    model = deep(gpu)
    x = tokens(model, gpu)
    patches = patches_for(model) if patched else None
    whole = distorch.place_string(model, f"{gpu},*", compute=gpu.name, patches=patches)
    expected = model(x).cpu()
    whole.unload()
    placed, executor = streamed(model, gpu, pinning, patches=patches)
    assert len(executor.streamed) >= 5
    for step in range(4):
        assert torch.equal(model(x).cpu(), expected), step
    placed.unload()


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_any_number_of_slots_with_everything_streamed(gpu: Gpu, slots: int) -> None:
    model = deep(gpu)
    x = tokens(model, gpu)
    expected = resident(model, gpu, x)
    placed = distorch.place_string(model, "cpu,*", compute=gpu.name)
    executor = distorch.StreamedExecutor(placed, slots=slots)
    assert len(executor.streamed) == 8
    for step in range(4):
        assert torch.equal(model(x).cpu(), expected), step
    assert executor.counters["ahead"] > 0 or slots == 1
    placed.unload()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision(gpu: Gpu, dtype: torch.dtype) -> None:
    model = deep(gpu).to(dtype)
    x = tokens(model, gpu)
    expected = resident(model, gpu, x)
    placed, _ = streamed(model, gpu, "pinned")
    for step in range(3):
        assert torch.equal(model(x).cpu(), expected), step
    placed.unload()


class Eight(nn.Module):
    """A layer whose weight is stored in eight bits and cast where it is used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        weight = torch.randn(width, width) / width**0.5
        self.weight = nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(0.5), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        return nn.functional.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)


def test_eight_bit_weights(gpu: Gpu) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(*[nn.Sequential(Eight(gpu.width)) for _ in range(6)]).eval()
    x = torch.randn(4, gpu.width).to(torch.bfloat16).to(gpu.device)
    expected = resident(model, gpu, x)
    placed = distorch.place_string(model, "cpu,*", compute=gpu.name)
    executor = distorch.StreamedExecutor(placed)
    assert len(executor.streamed) == 6
    for step in range(3):
        assert torch.equal(model(x).cpu(), expected), step
    placed.unload()


class Convolved(nn.Module):
    """A convolution that tells how its weight lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.seen: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolved image."""
        self.seen.append(self.conv.weight.is_contiguous(memory_format=torch.channels_last))
        return self.conv(x)


def test_channels_last_stays_channels_last(gpu: Gpu) -> None:
    torch.manual_seed(6)
    model = nn.Sequential(*[nn.Sequential(Convolved()) for _ in range(4)]).eval()
    model = model.to(memory_format=torch.channels_last).requires_grad_(False)
    x = torch.randn(2, 16, 24, 24).to(gpu.device).to(memory_format=torch.channels_last)
    expected = resident(model, gpu, x)
    placed = distorch.place_string(model, "cpu,*", compute=gpu.name)
    executor = distorch.StreamedExecutor(placed)
    assert len(executor.streamed) == 4
    for (layer,) in model:
        layer.seen.clear()
    for step in range(3):
        assert torch.equal(model(x).cpu(), expected), step
    assert [all(layer.seen) for (layer,) in model] == [True] * 4
    placed.unload()


def test_a_group_larger_than_one_registration(gpu: Gpu) -> None:
    model = deep(gpu, layers=3, width=4096 if gpu.hardware else 0)  # 512 MB a layer
    x = tokens(model, gpu)
    expected = resident(model, gpu, x)
    placed = distorch.place_string(model, "cpu,*", compute=gpu.name)
    executor = distorch.StreamedExecutor(placed)
    assert executor.slot_bytes > (256 << 20 if gpu.hardware else 0)
    for step in range(3):
        assert torch.equal(model(x).cpu(), expected), step
    placed.unload()


def test_an_order_that_changes(gpu: Gpu) -> None:
    model = deep(gpu)
    x = tokens(model, gpu)
    orders = [list(range(8)), list(reversed(range(8))), [0, 2, 4], [3, 3, 1], list(range(8))]
    expected = []
    for order in orders:
        model.order = order
        expected.append(resident(model, gpu, x))
    placed, _ = streamed(model, gpu, "pinned", share="0%")
    for _ in range(2):
        for order, wanted in zip(orders, expected, strict=True):
            model.order = order
            for _ in range(2):
                assert torch.equal(model(x).cpu(), wanted), order
    placed.unload()


@pytest.mark.two_devices
@pytest.mark.parametrize("mode", ["stream", "migrate"])
def test_from_another_device(gpu: Gpu, mode: str) -> None:
    model = deep(gpu)
    x = tokens(model, gpu)
    expected = resident(model, gpu, x)
    donor = f"{gpu.kind}:1"
    placed = distorch.place_string(model, f"{gpu},30%;{donor},*,mode={mode}", compute=gpu.name)
    executor = distorch.StreamedExecutor(placed)
    for step in range(4):
        assert torch.equal(model(x).cpu(), expected), step
    assert bool(executor.migrated) is (mode == "migrate")
    assert len(executor.streamed) >= 5 or mode == "migrate"
    placed.unload()


@pytest.mark.parametrize("back", [False, True], ids=["to the device", "to the host"])
def test_pageable_memory_by_the_fastest_way(gpu: Gpu, back: bool) -> None:
    from distorch import transfer

    host = torch.randint(0, 255, (48 << 20,), dtype=torch.uint8)
    there = torch.zeros_like(host, device=gpu.device)
    way = transfer.copy(there, host)
    assert way in (("direct", "staged") if gpu.hardware else ("torch",))
    if back:
        host = torch.zeros_like(host)
        transfer.copy(host, there)
        gpu.synchronize()
    assert torch.equal(there.cpu(), host)
    assert int(host.to(torch.int64).sum()) > 0
