# SPDX-License-Identifier: Apache-2.0
"""distorch_sim.races: every kind of missing wait is found, and what is ordered is not taken for one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import distorch_sim
import pytest
import torch
from distorch_sim.races import find_races

DEVICE = "sim:0"


@pytest.fixture(autouse=True)
def _devices() -> Iterator[None]:
    gc.collect()
    distorch_sim.install([2**20] * 2)
    with torch.inference_mode():
        yield


def filled_on_the_side(slot: torch.Tensor) -> torch.sim.Stream:
    """Copy into a slot on a stream of its own, behind what uses it now."""
    side = torch.sim.Stream(device=DEVICE)
    used = torch.sim.Event()
    used.record(torch.sim.current_stream(DEVICE))
    with torch.sim.stream(side):
        side.wait_event(used)
        slot.copy_(torch.ones(slot.shape), non_blocking=True)
    return side


def waits_by_event(side: torch.sim.Stream) -> None:
    torch.sim.current_stream(DEVICE).wait_event(side.record_event())


def waits_by_stream(side: torch.sim.Stream) -> None:
    torch.sim.current_stream(DEVICE).wait_stream(side)


def host_waits(side: torch.sim.Stream) -> None:
    side.synchronize()


def host_waits_for_event(side: torch.sim.Stream) -> None:
    side.record_event().synchronize()


def host_waits_for_device(side: torch.sim.Stream) -> None:
    torch.sim.synchronize(DEVICE)


WAITS = (waits_by_event, waits_by_stream, host_waits, host_waits_for_event, host_waits_for_device)


@pytest.mark.parametrize("wait", [None, *WAITS])
def test_reading_before_the_copy_is_there(wait: Callable[[torch.sim.Stream], None] | None) -> None:
    with find_races() as races:
        slot = torch.empty(64, device=DEVICE)
        side = filled_on_the_side(slot)
        if wait is not None:
            wait(side)
        slot.view(8, 8)[2:4] * 2
    if wait is not None:
        assert races == []
    else:
        (race,) = races
        assert race.startswith("aten::mul on stream")
        assert "reads bytes of sim:0 that aten::copy_ on stream" in race


def test_overwriting_what_is_still_read() -> None:
    with find_races() as races:
        slot = torch.empty(64, device=DEVICE)
        waits_by_stream(filled_on_the_side(slot))
        slot * 2
        filled_on_the_side(slot)
    assert races == []
    with find_races() as races:
        slot = torch.empty(64, device=DEVICE)
        side = filled_on_the_side(slot)
        waits_by_stream(side)
        slot * 2
        with torch.sim.stream(side):
            slot.copy_(torch.zeros(64), non_blocking=True)
    (race,) = races
    assert "aten::copy_ on stream" in race
    assert "writes bytes of sim:0 that aten::mul on stream" in race


def test_other_bytes_of_the_same_memory_are_no_race() -> None:
    with find_races() as races:
        slot = torch.empty(64, device=DEVICE)
        side = torch.sim.Stream(device=DEVICE)
        waits_by_stream(side)
        side.wait_stream(torch.sim.current_stream(DEVICE))
        with torch.sim.stream(side):
            slot[:32].copy_(torch.ones(32), non_blocking=True)
        slot[32:] * 2
    assert races == []


@pytest.mark.parametrize("waits", [False, True])
def test_freeing_what_a_copy_still_writes(waits: bool) -> None:
    with find_races() as races:
        slot = torch.empty(64, device=DEVICE)
        side = filled_on_the_side(slot)
        if waits:
            side.synchronize()
        del slot
        torch.ones(1, device=DEVICE)
        assert [race[:46] for race in races] == [
            "256 bytes of sim:0 were freed while aten::copy"
        ] * (not waits)


def test_an_event_counts_as_it_was_recorded_last_and_not_at_all_before() -> None:
    with find_races() as races:
        slot, event = torch.empty(64, device=DEVICE), torch.sim.Event()
        side = filled_on_the_side(slot)
        torch.sim.current_stream(DEVICE).wait_event(event)  # never recorded
        slot * 2
    assert len(races) == 1
    with find_races() as races:
        slot, event = torch.empty(64, device=DEVICE), torch.sim.Event()
        side = torch.sim.Stream(device=DEVICE)
        event.record(side)
        side.wait_stream(torch.sim.current_stream(DEVICE))
        with torch.sim.stream(side):
            slot.copy_(torch.ones(64), non_blocking=True)
        torch.sim.current_stream(DEVICE).wait_event(event)  # recorded before the copy
        slot * 2
    assert len(races) == 1


def test_copies_between_devices_and_to_the_host_are_ordered_as_torch_orders_them() -> None:
    with find_races() as races:
        there = torch.ones(64).to("sim:1")
        here = there.to(DEVICE)
        here += 1
        there.fill_(3)
        assert here.cpu()[0] == 2
        side = filled_on_the_side(here)
        assert side.query()
        here.cpu()
    assert len(races) == 1
