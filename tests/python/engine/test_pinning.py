# SPDX-License-Identifier: Apache-2.0
"""Host slabs: exact, page-aligned, pinned in segments below a cap, copied through a small buffer where they are not."""

from __future__ import annotations

import logging
import threading

import distorch_sim
import pytest
import torch
from placing import Layer, plan_of
from torch import nn

from distorch import slabs
from distorch.engine import HostPinner, StreamedExecutor, bounce, pinning, streaming
from distorch.engine.bounce import BounceCopier
from distorch.model_blocks import inventory
from distorch.patching import DiffPatch
from distorch.placed import PlacedModel
from distorch.placing import place
from distorch.slabs import PAGE

pytestmark = pytest.mark.usefixtures("sim")


class Driver:
    """A registrar that keeps what CUDA's driver would, and refuses when told to."""

    def __init__(self, refuse_from: int = 1 << 60) -> None:
        self.ranges: dict[int, int] = {}
        self.calls = 0
        self.refuse_from = refuse_from

    def register(self, address: int, size: int) -> str:
        self.calls += 1
        assert address % PAGE == 0
        assert size % PAGE == 0
        for other, length in self.ranges.items():
            assert address + size <= other or other + length <= address, "registered twice"
        if self.calls >= self.refuse_from:
            return "out of memory"
        self.ranges[address] = size
        return ""

    def unregister(self, address: int) -> str:
        return "" if self.ranges.pop(address, None) else "not registered"


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


def test_segments_end_at_the_cap_and_the_rest_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = Driver()
    pinner = HostPinner(driver, cap=5 * PAGE, segment=2 * PAGE)
    one, two = (
        slabs.allocate(3 * PAGE, torch.device("cpu")),
        slabs.allocate(4 * PAGE - 9, torch.device("cpu")),
    )
    with caplog.at_level(logging.WARNING, "distorch"):
        assert pinner.pin(one) == [(0, 2 * PAGE), (2 * PAGE, 3 * PAGE)]
        assert pinner.pin(two) == [(0, 2 * PAGE)]
        assert pinner.pin(two) == [(0, 2 * PAGE)], "the second time nothing is registered"
        assert pinner.pin(slabs.allocate(PAGE, torch.device("cpu"))) == []
    assert pinner.pinned == sum(driver.ranges.values()) == 5 * PAGE
    assert len(caplog.records) == 1
    assert f"the cap of {5 * PAGE} bytes for pinned memory is reached" in caplog.text
    pinner.keep_only([two])
    assert sum(driver.ranges.values()) == pinner.pinned == 2 * PAGE
    pinner.close()
    assert driver.ranges == {}
    assert pinner.pinned == 0


def test_no_tensor_is_pinned_in_part() -> None:
    """CUDA refuses a copy of memory that is registered at one end only."""
    sizes = [100, 3 * PAGE, 2 * PAGE, 5000, PAGE, 6 * PAGE, 7]
    packed = slabs.pack([torch.zeros(size, dtype=torch.uint8) for size in sizes])
    (slab,) = slabs.slabs_of(packed)
    places = [(t.data_ptr() - slab.data_ptr(), t.nbytes) for t in packed]
    assert sorted(places)[:4] == [
        (0, 3 * PAGE),
        (3 * PAGE, 2 * PAGE),
        (5 * PAGE, PAGE),
        (6 * PAGE, 6 * PAGE),
    ]
    cuts = slabs.borders(slab, packed)
    assert cuts == [3 * PAGE, 5 * PAGE, 6 * PAGE, 12 * PAGE]
    for cap in range(16):
        pinner = HostPinner(Driver(), cap=cap * PAGE, segment=4 * PAGE)
        end = max((high for _, high in pinner.pin(slab, cuts)), default=0)
        assert all(begin + size <= end or begin >= end for begin, size in places), cap
        assert end in (0, 3 * PAGE, 6 * PAGE, 12 * PAGE, slab.nbytes)
        pinner.close()


def test_the_default_cap_is_that_of_all_models_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "default_cap", lambda: 5 * PAGE)
    one, two = HostPinner(Driver(), segment=PAGE), HostPinner(Driver(), segment=PAGE)
    assert sum(end - begin for begin, end in one.pin(_slab(3))) == 3 * PAGE
    assert sum(end - begin for begin, end in two.pin(_slab(3))) == 2 * PAGE
    assert two.trouble == f"the cap of {5 * PAGE} bytes of all models for pinned memory is reached"
    one.close()
    assert HostPinner.total == two.pinned == 2 * PAGE
    del two  # without being closed
    assert HostPinner.total == 0


def _slab(pages: int) -> torch.Tensor:
    return slabs.allocate(pages * PAGE, torch.device("cpu"))


def test_a_refusal_keeps_what_is_pinned() -> None:
    driver = Driver(refuse_from=2)
    pinner = HostPinner(driver, cap=1 << 40, segment=PAGE)
    slab = slabs.allocate(3 * PAGE, torch.device("cpu"))
    assert pinner.pin(slab) == [(0, PAGE)]
    assert pinner.trouble == f"{PAGE} bytes could not be pinned, {PAGE} are: out of memory"
    pinner.close()


class Runtime:
    """CUDA's runtime as far as memory is registered: it remembers an error until somebody takes it off."""

    def __init__(self) -> None:
        self.last_error = 0

    def _fail(self, code: int) -> int:
        self.last_error = code
        return code

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        assert flags == 1, "for every device of the process"
        return self._fail(2) if size > PAGE else 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        return self._fail(713) if address == 0 else 0

    def cudaGetErrorString(self, code: int) -> str:  # noqa: N802
        return {2: "out of memory", 713: "pointer was not registered"}[code]

    def launch(self, *_: object, **__: object) -> None:
        """What the launch of a kernel does in torch."""
        code, self.last_error = self.last_error, 0
        if code:
            raise RuntimeError(f"CUDA error: {self.cudaGetErrorString(code)}")


def test_a_refused_registration_leaves_no_error_for_the_next_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = Runtime()
    monkeypatch.setattr(pinning.torch, "zeros", runtime.launch)
    registrar = pinning.CudaRegistrar(runtime)
    assert registrar.register(PAGE, PAGE) == ""
    assert registrar.register(PAGE, 2 * PAGE) == "out of memory"
    runtime.launch()
    assert registrar.unregister(0) == "pointer was not registered"
    runtime.launch()


def test_what_is_not_streamed_any_more_makes_room_below_the_cap() -> None:
    layers = [nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(6)]
    model, x = nn.Sequential(*layers).eval(), torch.zeros(2, 64)
    pinner = HostPinner(Driver(), cap=1 << 40)
    with torch.inference_mode():
        placed = on_host(model)
        StreamedExecutor(placed, pinner=pinner)
        model(x)
        assert pinner.pinned > 0
        pinner.cap = pinner.pinned
        everything = {n: [DiffPatch(torch.ones_like(p))] for n, p in model.named_parameters()}
        placed.repatch(everything)
        model(x)
    assert pinner.trouble == ""
    assert pinner.pinned == pinner.cap
    pinner.close()


def test_the_executor_pins_its_slabs_and_gives_them_back(
    model: nn.Sequential, x: torch.Tensor
) -> None:
    driver = Driver()
    pinner = HostPinner(driver, cap=1 << 40)
    with torch.inference_mode():
        expected = model(x)
        placed = on_host(model)
        executor = StreamedExecutor(placed, pinner=pinner)
        assert 0 < executor.bytes_per_step <= pinner.pinned <= executor.bytes_per_step + 6 * PAGE
        for _ in range(3):
            assert torch.equal(model(x).cpu(), expected)
        assert driver.calls == 6, "a slab is registered once"
        executor.detach()
        assert driver.ranges, "the caller's pinner is the caller's to close"
        pinner.close()
        assert driver.ranges == {}
        executor = StreamedExecutor(placed, pin_cap=0)
        assert torch.equal(model(x).cpu(), expected)


@pytest.mark.parametrize("cap_pages", [0, 5, 40])
def test_pageable_parts_come_through_the_bounce_buffer(
    model: nn.Sequential, x: torch.Tensor, cap_pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread and its two buffers, with the simulated device's streams; 1000 bytes a buffer."""
    monkeypatch.setattr(bounce, "BUFFER_BYTES", 1000)
    monkeypatch.setattr(bounce, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(streaming.Streamer, "_needs_bounce", lambda self: True)
    pinner = HostPinner(Driver(), cap=cap_pages * PAGE, segment=PAGE)
    with torch.inference_mode():
        expected = model(x)
        placed = on_host(model)
        executor = StreamedExecutor(placed, pinner=pinner)
        assert any("not all of the host's part is pinned" in note for note in executor.notes)
        distorch_sim.reset_counters()
        for _ in range(4):
            assert torch.equal(model(x).cpu(), expected)
        assert any(t.name == "distorch-bounce" for t in threading.enumerate())
        executor.detach()
        assert distorch_sim.copied("cpu", "sim:0") == executor.bytes_copied + 4 * x.nbytes
        assert executor.bytes_copied >= 4 * 803328
        assert not any(t.name == "distorch-bounce" for t in threading.enumerate())


def test_without_any_pinned_memory_the_driver_stages_and_that_is_said(
    model: nn.Sequential,
    x: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(size: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("cannot pin")

    monkeypatch.setattr(bounce, "_pinned", refuse)
    monkeypatch.setattr(streaming.Streamer, "_needs_bounce", lambda self: True)
    with torch.inference_mode():
        expected = model(x)
        executor = StreamedExecutor(on_host(model), pinner=HostPinner(Driver(), cap=0))
        for _ in range(3):
            assert torch.equal(model(x).cpu(), expected)
        executor.detach()
    assert caplog.text.count("no pinned buffer") == 1
    assert "cannot pin" in caplog.text


def test_a_failure_in_the_bounce_thread_reaches_who_waits(
    model: nn.Sequential, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounce, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(streaming.Streamer, "_needs_bounce", lambda self: True)
    with torch.inference_mode():
        expected = model(x)
        executor = StreamedExecutor(on_host(model), pinner=HostPinner(Driver(), cap=0))
        x = x.to("sim:0")
        for _ in range(2):
            model(x)
        with distorch_sim.faults(copy=3), pytest.raises(RuntimeError, match="injected"):
            nn.Sequential(model, model)(x)
        for _ in range(2):
            assert torch.equal(model(x).cpu(), expected)
        executor.detach()


def test_the_bounce_copier_waits_for_its_buffers() -> None:
    made: list[Event] = []

    class Event:
        def __init__(self) -> None:
            self.log: list[str] = []
            made.append(self)

        def record(self, stream: object) -> None:
            self.log.append("record")

        def synchronize(self) -> None:
            self.log.append("wait")

    copier = BounceCopier(
        torch.device("cpu"), None, Event, 10, lambda n: torch.empty(n, dtype=torch.uint8)
    )
    source = torch.arange(35, dtype=torch.uint8)
    target = torch.zeros(35, dtype=torch.uint8)
    copier.submit(lambda: copier.copy(target, source)).result(timeout=10)
    assert torch.equal(target, source)
    assert [event.log for event in made] == [["record", "wait", "record"]] * 2
    copier.close()


def test_cutting_at_pinned_parts() -> None:
    cut = streaming._cut
    assert cut(0, 10, []) == [(0, 10, True)]
    assert cut(2, 9, [(0, 4), (4, 12)]) == [(2, 4, False), (4, 9, False)]
    assert cut(2, 9, [(0, 4), (6, 7)]) == [(2, 4, False), (4, 6, True), (6, 7, False), (7, 9, True)]
    assert cut(5, 9, [(0, 4)]) == [(5, 9, True)]


def test_changed_patches_are_streamed_and_unpatched_tensors_stay(
    model: nn.Sequential, x: torch.Tensor
) -> None:
    driver = Driver()
    with torch.inference_mode():
        plain = model(x)
        placed = on_host(model)
        executor = StreamedExecutor(placed, pinner=HostPinner(driver, cap=1 << 40))
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
