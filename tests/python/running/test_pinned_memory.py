# SPDX-License-Identifier: Apache-2.0
"""Slabs in pinned memory of torch's allocator, as on XPU and NPU: few pieces, little idle, within the budget, given back."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pin_budget import Budget
from placing import Layer, plan_of
from torch import nn

from distorch.model_blocks import inventory
from distorch.placing import place
from distorch.run import HostPinner, StreamedExecutor, pinned_memory, pinning
from distorch.run.pinned_memory import PinnedMemory, pins_for
from distorch.slabs import slab_of

pytestmark = pytest.mark.usefixtures("sim", "device_in_cpp")
KB = 1 << 10


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Iterator[Budget]:
    """The process's; nothing may be left counted in it."""
    made = Budget(1 << 30)
    monkeypatch.setattr(pinning, "_budget", made)
    yield made
    gc.collect()
    assert made.count == 0


def test_only_the_accelerator_of_torch_s_allocator_is_pinned_for() -> None:
    assert pins_for(torch.device("sim:1"))
    assert not any(pins_for(torch.device(name)) for name in ("cpu", "cuda:0", "xpu:0"))


def test_host_weights_are_streamed_from_pinned_memory(budget: Budget) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(*(Layer(64) for _ in range(12))).eval()
    x = torch.randn(2, 5, 64)
    with torch.inference_mode():
        expected = model(x)
    found = list(model.parameters())
    placed = place(
        model, plan_of({b.name: "cpu" for b in inventory(model).blocks}), compute="sim:0"
    )
    executor = StreamedExecutor(placed)
    slabs = {id(slab): slab for slab in map(slab_of, model.parameters()) if slab is not None}
    pinned = [slab for slab in slabs.values() if slab.is_pinned()]
    assert (len(slabs), len(pinned)) == (12, 10), "the last two would leave too much idle"
    together = sum(slab.nbytes for slab in pinned)
    assert together <= budget.count <= together * 6 / 5
    assert not [note for note in executor.notes if "pinned" in note]
    with torch.inference_mode():
        for _ in range(4):
            assert torch.equal(model(x).cpu(), expected)
    placed.unload()
    assert all(a is b for a, b in zip(model.parameters(), found, strict=True))
    del executor, slabs, pinned


@pytest.mark.parametrize(
    "sizes",
    [
        [300 * KB] * 57,
        [300 * KB] * 10,
        [700 * KB] * 20,
        [340 * KB] * 19 + [140 * KB] * 38,
        [256] * 1000,
        [1 << 20],
    ],
    ids=lambda sizes: f"{len(sizes)} of {sizes[0]}",
)
def test_little_of_what_is_pinned_lies_idle(budget: Budget, sizes: list[int]) -> None:
    memory = PinnedMemory(budget, 1 << 40)
    memory.expected = sum(sizes)
    slabs = [memory.allocate(size) for size in sizes]
    pinned = [slab for slab in slabs if slab is not None]
    assert len(pinned) >= 0.9 * len(slabs)
    assert memory.pinned == budget.count <= sum(slab.nbytes for slab in pinned) * 6 / 5
    assert len(memory._pieces) <= 4
    starts = sorted((slab.data_ptr(), slab.nbytes) for slab in pinned)
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(starts))
    assert memory.trouble == ""


@pytest.mark.parametrize(("limit", "cap"), [(5 << 20, 1 << 40), (1 << 40, 5 << 20)])
def test_no_more_is_pinned_than_may_be(budget: Budget, limit: int, cap: int) -> None:
    budget.most = limit
    memory = PinnedMemory(budget, cap)
    memory.expected = 16 << 20
    slabs = [memory.allocate(1 << 20) for _ in range(16)]
    assert [slab is not None for slab in slabs] == [True] * 5 + [False] * 11
    assert memory.trouble == "", "a limit is none"


def test_a_piece_is_given_back_with_its_last_slab(budget: Budget) -> None:
    memory = PinnedMemory(budget, 1 << 40)
    memory.expected = 2 << 20
    one, other = (memory.allocate(1 << 20) for _ in range(2))
    assert budget.count == 2 << 20
    del one
    gc.collect()
    assert budget.count == 2 << 20
    del other
    gc.collect()
    assert (budget.count, memory.pinned) == (0, 0)
    memory.expected = 1 << 20
    assert memory.allocate(1 << 20) is not None, "what has gone is not cut from"


def test_what_torch_cannot_pin_stays_pageable_and_is_told(
    budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty

    def refuse(*size: Any, **options: Any) -> torch.Tensor:
        if options.get("pin_memory"):
            raise RuntimeError("the driver pins no more\nC++ frames")
        return empty(*size, **options)

    monkeypatch.setattr(pinned_memory.torch, "empty", refuse)
    pinner = HostPinner(torch.device("sim:0"))
    pinner.expect(1 << 20)
    slab = pinner.allocate(1 << 20, torch.device("cpu"))
    assert (slab.nbytes, slab.is_pinned()) == (1 << 20, False)
    assert pinner.trouble == "the driver pins no more"
    assert pinner.pinned == 0
    assert not pins_for(torch.device("sim:0"))
