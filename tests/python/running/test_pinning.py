# SPDX-License-Identifier: Apache-2.0
"""Host slabs: exact, page-aligned, pinned by the core between tensors and within a budget, given back.

The core's own tests (tests/distorch/transfer/host_pinner_test.cc) have segments, caps and refusals.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda, streamed_by_the_core
from pin_budget import Budget
from placing import Layer, plan_of
from torch import nn

from distorch import slabs
from distorch.model_blocks import inventory
from distorch.patching import DiffPatch
from distorch.placed import PlacedModel
from distorch.placing import place
from distorch.run import HostPinner, StreamedExecutor, pinning, share_budget
from distorch.slabs import PAGE

pytestmark = pytest.mark.usefixtures("sim")


@pytest.fixture
def fake(sim: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """CUDA's double; nothing may be found, or stay pinned."""
    monkeypatch.setattr(pinning, "_budget", Budget(1 << 40))
    with streamed_by_the_core(monkeypatch) as double:
        yield double
        gc.collect()
        double.library.fake_run_all()
        assert double.violations == []
        assert double.library.fake_registrations() == 0


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(*(Layer(64) for _ in range(6))).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(4))


def on_host(model: nn.Module) -> PlacedModel:
    return place(model, plan_of({b.name: "cpu" for b in inventory(model).blocks}), compute="sim:0")


def test_a_slab_has_exactly_its_tensors_and_whole_pages() -> None:
    tensors = [torch.randn(7, 3), torch.randn(1000, dtype=torch.float64), torch.tensor(5)]
    views = slabs.pack(tensors)
    (slab,) = slabs.slabs_of(views)
    assert slab.data_ptr() % PAGE == 0
    assert slab.nbytes == 256 + 8192 + 256
    assert all(torch.equal(a, b) for a, b in zip(tensors, views, strict=True))
    again = slabs.pack(views)
    assert all(a is b for a, b in zip(again, views, strict=True)), "packed already: nothing moves"
    (run,), size = slabs.runs(views)
    assert (run.begin, run.at, run.size) == (0, 0, slab.nbytes)
    assert size == slab.nbytes


def test_replaced_tensors_go_into_a_slab_of_their_own() -> None:
    views = slabs.pack([torch.full((100,), float(i)) for i in range(5)])
    (slab,) = slabs.slabs_of(views)
    mixed = slabs.pack([views[0], torch.ones(100), views[2], views[3], torch.zeros(100)])
    assert [a is b for a, b in zip(mixed, views, strict=True)] == [True, False, True, True, False]
    (same, other) = slabs.slabs_of(mixed)
    assert same is slab
    assert other.nbytes == 2 * 512
    together = [mixed[0], mixed[2], mixed[3], mixed[1], mixed[4]]
    parts, size = slabs.runs(together)
    assert [(r.begin, r.at, r.size) for r in parts] == [
        (0, 0, 512),
        (1024, 512, 1024),
        (0, 1536, 1024),
    ]
    assert size == 5 * 512


def test_no_tensor_is_pinned_in_part(fake: FakeCuda) -> None:
    """CUDA refuses a copy of memory that is registered at one end only."""
    sizes = [100, 3 * PAGE, 2 * PAGE, 5000, PAGE, 6 * PAGE, 7]
    packed = slabs.pack([torch.zeros(size, dtype=torch.uint8) for size in sizes])
    (slab,) = slabs.slabs_of(packed)
    first = slab.data_ptr()
    places = [(t.data_ptr() - first, t.nbytes) for t in packed]
    cuts = slabs.borders(slab, packed)
    assert cuts == [3 * PAGE, 5 * PAGE, 6 * PAGE, 12 * PAGE]
    whole = -(-slab.nbytes // PAGE) * PAGE
    for cap in range(16):
        pinner = HostPinner(fake.device, cap=cap * PAGE, segment=4 * PAGE)
        segments = pinner.pin(slab, cuts).segments
        end = max((address + size - first for address, size in segments), default=0)
        assert all(begin + size <= end or begin >= end for begin, size in places), cap
        assert end in (0, 3 * PAGE, 6 * PAGE, 12 * PAGE, whole)
        pinner.close()


def test_ours_counts_with_everybody_elses(fake: FakeCuda, caplog: pytest.LogCaptureFixture) -> None:
    budget = Budget(limit=8 * PAGE, used=3 * PAGE)
    share_budget(budget)
    one = HostPinner(fake.device, segment=2 * PAGE)
    with caplog.at_level(logging.WARNING, "distorch"):
        for _ in range(2):
            slab = slabs.allocate(4 * PAGE, torch.device("cpu"))
            one.pin(slab, [2 * PAGE])
    assert budget.count == 7 * PAGE
    assert one.pinned == 4 * PAGE
    assert one.trouble == (
        f"the limit of {8 * PAGE} bytes of pinned memory of all models is reached"
    )
    assert caplog.text.count("The rest is copied through a pinned buffer") == 1
    del one, slab  # without being closed
    gc.collect()
    assert budget.count == 3 * PAGE


def test_a_refusal_is_said_and_the_rest_stays_pageable(fake: FakeCuda) -> None:
    fake.library.fake_fail(b"cudaHostRegister", 2, 2)
    pinner = HostPinner(fake.device, segment=PAGE)
    slab = slabs.allocate(3 * PAGE, torch.device("cpu"))
    assert pinner.pin(slab, [PAGE, 2 * PAGE]).segments == [(slab.data_ptr(), PAGE)]
    assert pinner.trouble.startswith("cudaHostRegister of 4096 bytes on cpu failed: ")


def test_hip_is_the_same_by_other_names(sim: Any) -> None:
    fake = FakeCuda(hip=True)
    pinner = HostPinner(fake.device, segment=PAGE)
    slab = slabs.allocate(2 * PAGE, torch.device("cpu"))
    pinner.pin(slab)
    assert pinner.pinned == 2 * PAGE
    assert fake.library.fake_registrations() == 1
    pinner.close()
    assert fake.library.fake_registrations() == 0


def test_the_executor_pins_its_slabs_and_gives_them_back(
    fake: FakeCuda, model: nn.Sequential, x: torch.Tensor
) -> None:
    pinner = HostPinner(fake.device)
    with torch.inference_mode():
        expected = model(x)
        placed = on_host(model)
        executor = StreamedExecutor(placed, pinner=pinner)
        assert 0 < executor.bytes_per_step <= pinner.pinned <= executor.bytes_per_step + 6 * PAGE
        for _ in range(3):
            assert torch.equal(model(x).cpu(), expected)
        assert fake.library.fake_registrations() == 6, "a slab is registered once"
        executor.detach()
        assert pinner.pinned > 0, "the caller's pinner is the caller's to close"
        pinner.close()
        assert fake.library.fake_registrations() == 0
        executor = StreamedExecutor(placed, pin_cap=0)
        assert torch.equal(model(x).cpu(), expected)


@pytest.mark.parametrize("cap_pages", [0, 5, 40])
def test_pageable_parts_come_through_pinned_buffers(
    fake: FakeCuda, model: nn.Sequential, x: torch.Tensor, cap_pages: int
) -> None:
    pinner = HostPinner(fake.device, cap=cap_pages * PAGE, segment=PAGE)
    with torch.inference_mode():
        expected = model(x)
        executor = StreamedExecutor(on_host(model), pinner=pinner)
        assert any("not all of the host's part is pinned" in note for note in executor.notes)
        for _ in range(4):
            assert torch.equal(model(x).cpu(), expected)
        executor.detach()
        assert fake.copied("cpu") == executor.bytes_copied >= 4 * 803328
    pinner.close()


def test_without_any_pinned_memory_the_driver_stages_and_that_is_said(
    fake: FakeCuda, model: nn.Sequential, x: torch.Tensor
) -> None:
    fake.library.fake_fail(b"cudaHostAlloc", 1, 2)
    with torch.inference_mode():
        expected = model(x)
        executor = StreamedExecutor(on_host(model), pin_cap=0)
        for _ in range(3):
            assert torch.equal(model(x).cpu(), expected)
        assert any("cudaHostAlloc of 16384 bytes" in note for note in executor.notes)
        executor.detach()


def test_a_failure_in_the_copying_thread_reaches_who_waits(
    fake: FakeCuda, model: nn.Sequential, x: torch.Tensor
) -> None:
    with torch.inference_mode():
        expected = model(x)
        executor = StreamedExecutor(on_host(model), pin_cap=0)
        for _ in range(2):
            model(x)
        fake.library.fake_fail(b"cudaMemcpyAsync", 3, 1)
        with pytest.raises(RuntimeError, match=r"cudaMemcpyAsync \(staged\) of \d+ bytes"):
            nn.Sequential(model, model)(x)
        for _ in range(2):
            assert torch.equal(model(x).cpu(), expected)
        executor.detach()


def test_a_model_that_just_dies_gives_everything_back(fake: FakeCuda, x: torch.Tensor) -> None:
    model = nn.Sequential(*(Layer(64) for _ in range(6))).eval()
    before = fake.library.fake_handles()
    with torch.inference_mode():
        executor = StreamedExecutor(on_host(model))
        for _ in range(2):
            model(x)
    alive = weakref.ref(executor.engine)
    slab = weakref.ref(slabs.slab_of(model[0].qkv.weight))
    assert fake.library.fake_handles() > before
    assert fake.library.fake_registrations() == 6
    del executor, model
    gc.collect()
    assert alive() is None
    assert slab() is None
    assert fake.library.fake_handles() == before
    assert fake.library.fake_registrations() == 0


def test_changed_patches_are_streamed_and_unpatched_tensors_stay(
    fake: FakeCuda, model: nn.Sequential, x: torch.Tensor
) -> None:
    with torch.inference_mode():
        plain = model(x)
        placed = on_host(model)
        executor = StreamedExecutor(placed)
        for _ in range(2):
            model(x)
        before = {n: p.data_ptr() for n, p in model.named_parameters()}
        patch = {"2.qkv.weight": [DiffPatch(torch.ones(192, 64), strength=0.5)]}
        placed.repatch(patch)
        after = {n: p.data_ptr() for n, p in model.named_parameters()}
        assert [n for n in before if before[n] != after[n]] == ["2.qkv.weight"]
        patched = model(x).cpu()
        assert not torch.equal(patched, plain)
        placed.unload()
        with torch.no_grad():
            model[2].qkv.weight += 0.5
        assert torch.equal(model(x), patched)
        assert executor.bytes_copied > 0
