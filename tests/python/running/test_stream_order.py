# SPDX-License-Identifier: Apache-2.0
"""Every access to a slot is ordered by streams and events, not by luck: see stream_order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from stream_order import Gpu

from distorch import slabs
from distorch._load import core
from distorch.run import torch_streaming
from distorch.run.streaming import StreamGroup
from distorch.run.torch_streaming import TorchStreamer

HOST = torch.device("cpu")


class InjectedError(Exception):
    """A copy fails."""


class Watched(TorchStreamer):
    """A streamer on a stand-in for CUDA; each copy is an access to its slot."""

    gpu: Gpu
    fail: int = 0  # the n-th copy from now on fails half way

    def _copy(self, index: int, slot: int) -> None:
        self.gpu.written(slot)
        if self.fail:
            self.fail -= 1
            if not self.fail:
                raise InjectedError
        super()._copy(index, slot)


def streamer(sources: Sequence[str], slots: int, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Groups of one small tensor; `sources` says on whose stream each is copied."""
    gpu = Gpu()
    for slot in range(slots):
        gpu.allocated(slot)
    monkeypatch.setattr(torch_streaming, "DeviceStreams", _on_gpu(gpu))
    groups = [
        StreamGroup(f"g{i}", slabs.pack([torch.full((64,), float(i))])) for i in range(len(sources))
    ]
    Watched.gpu = gpu
    made = Watched(groups, HOST, slots)
    made._copied_on = [made._streams.copies(torch.device(source)) for source in sources]
    return made


def _on_gpu(gpu: Gpu) -> Any:
    real = torch_streaming.DeviceStreams

    def make(device: torch.device, slots: int) -> Any:
        streams = real(device, 0)
        streams.module = gpu
        streams.ready = [gpu.Event() for _ in range(slots)]
        streams.used = [gpu.Event() for _ in range(slots)]
        streams._filled_on = [None] * slots
        streams._read_on = [None] * slots
        return streams

    return make


def run(made: Watched, order: Sequence[int]) -> None:
    """One step: each group is read from its slot."""
    made.begin_step()
    for index in order:
        stored = made.groups[index].stored[0]
        table = {"w": stored}
        lent = [[views[0]] for views in made.groups[index].views]
        swap = core().TensorSwap([(table, "w", stored)], lent)
        assert made.enter(index, 0, swap)
        slot = next(i for i, tensors in enumerate(lent) if tensors[0] is table["w"])
        made.gpu.read(slot)
        assert torch.equal(table["w"], torch.full((64,), float(index)))
        made.leave(index, 0, swap)
        assert table["w"] is stored


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


def test_a_slot_that_is_read_on_two_streams_waits_for_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = streamer(["cpu", "cpu"], 1, monkeypatch)
    run(made, [0])
    with made.gpu.stream(made.gpu.Stream()):
        run(made, [0])
    run(made, [1])
    assert made.gpu.violations == []


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
    made = streamer(sources, chance.randint(1, 4), monkeypatch)
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
