# SPDX-License-Identifier: Apache-2.0
"""Every access to a slot is ordered by streams and events, not by luck: see stream_order."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from stream_order import Gpu

from distorch import slabs
from distorch.engine import HostPinner, bounce, streaming
from distorch.engine.streaming import Streamer, StreamGroup

HOST = torch.device("cpu")


class InjectedError(Exception):
    """A copy fails."""


class Watched(Streamer):
    """A streamer on a stand-in for CUDA; each copy is an access to its slot, told at `hold` where that is set."""

    gpu: Gpu
    hold: threading.Event | None = None
    fail: int = 0  # the n-th copy from now on fails half way

    def _make_slots(self, slots: int) -> None:
        for slot in range(slots):
            self.gpu.allocated(slot)
        super()._make_slots(slots)

    def _copy(self, index: int, slot: int) -> None:
        if self.hold is not None and threading.current_thread().name == "distorch-bounce":
            assert self.hold.wait(10)
        self.gpu.written(slot)
        if self.fail:
            self.fail -= 1
            if not self.fail:
                raise InjectedError
        super()._copy(index, slot)


def streamer(
    sources: Sequence[str],
    slots: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    pageable: Sequence[bool] = (),
) -> Watched:
    """Groups of one small tensor; `sources` says on whose stream each is copied."""
    gpu = Gpu()
    monkeypatch.setattr(streaming, "device_module", lambda kind: gpu)
    monkeypatch.setattr(streaming, "DeviceStreams", _on_gpu(gpu))
    monkeypatch.setattr(bounce, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(Streamer, "_needs_bounce", lambda self: bool(pageable))
    groups = [
        StreamGroup(f"g{i}", slabs.pack([torch.full((64,), float(i))])) for i in range(len(sources))
    ]
    Watched.gpu = gpu
    made = Watched(groups, HOST, slots, HostPinner(None))
    made._copied_on = [made._streams.copies(torch.device(source)) for source in sources]
    made._bounced = list(pageable) or [False] * len(sources)
    for index, through in enumerate(pageable):
        made._copies[index] = [
            [(a, b, through) for a, b, _ in copies] for copies in made._copies[index]
        ]
    return made


def _on_gpu(gpu: Gpu) -> Any:
    real = streaming.DeviceStreams

    def make(device: torch.device, slots: int) -> Any:
        streams = real(device, 0)
        streams.module = gpu
        streams.ready = [gpu.Event() for _ in range(slots)]
        streams.used = [gpu.Event() for _ in range(slots)]
        streams._filled_on = [None] * slots
        return streams

    return make


def run(made: Watched, order: Sequence[int]) -> None:
    """One step: each group is read from its slot."""
    made.begin_step()
    for index in order:
        slot = made.acquire(index)
        made.gpu.read(slot)
        assert torch.equal(made.groups[index].views[slot][0], torch.full((64,), float(index)))
        made.release(index)


def test_the_first_copy_waits_for_what_used_the_memory_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The allocator hands out memory that kernels queued on the compute stream may still read."""
    made = streamer(["cpu"] * 3, 2, monkeypatch)
    run(made, [0, 1, 2])
    assert made.gpu.violations == []


def test_a_copy_on_another_stream_waits_for_one_that_nobody_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = streamer(["cpu", "cuda:1", "cpu", "cuda:1"], 2, monkeypatch)
    for order in ([0, 1, 2, 3], [0, 1, 2, 3], [3, 2], [0, 2], [1, 3], [0, 1, 2, 3]):
        run(made, order)
    assert made.counters["wasted"] > 0
    assert made.gpu.violations == []


def test_a_direct_copy_does_not_overtake_a_pageable_one_into_the_same_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = streamer(["cpu"] * 4, 2, monkeypatch, pageable=[False, True, False, False])
    for _ in range(2):
        run(made, [0, 1, 2, 3])
    made.hold = threading.Event()
    threading.Timer(0.2, made.hold.set).start()  # the thread is busy while the order changes
    run(made, [3, 2, 3, 2, 0])
    made.hold = None
    run(made, [0, 1, 2, 3])
    assert made.counters["wasted"] > 0
    assert made.gpu.violations == []
    made.close()


def test_sources_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = streamer(["cpu", "cuda:1", "cuda:2"], 3, monkeypatch)
    run(made, [0, 1, 2])
    streams = [made._streams.copies(torch.device(d)) for d in ("cpu", "cuda:1", "cuda:2")]
    assert len({stream.number for stream in streams}) == 3
    mine = [stream.number for stream in streams]
    assert not any(
        other in stream.clock for stream in streams for other in mine if other != stream.number
    )


@pytest.mark.parametrize("seed", range(40))
def test_random_orders_sources_and_failures(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    count = chance.randint(1, 7)
    sources = [chance.choice(["cpu", "cuda:1", "cuda:2"]) for _ in range(count)]
    pageable = [s == "cpu" and chance.random() < 0.5 for s in sources] if seed % 2 else []
    made = streamer(sources, chance.randint(1, 4), monkeypatch, pageable=pageable)
    order = list(range(count))
    for _ in range(30):
        if chance.random() < 0.4:
            chance.shuffle(order)
        made.fail = chance.choice([0, 0, 0, 1, 2])
        try:
            run(made, order[: chance.randint(1, count)])
        except InjectedError:
            made.reset()
    assert made.gpu.violations == []
    made.close()
