# SPDX-License-Identifier: Apache-2.0
"""Simulated accelerators: device type `sim`, up to eight devices with a capacity each, on any machine.

    import distorch_sim
    distorch_sim.install(capacities=[2**30, 2**30])
    torch.ones(4, device="sim:1").to("cpu")
    distorch_sim.copied("sim:1", "cpu")   # 16

Memory is host memory that is accounted for exactly as asked for; operators run as the CPU's kernels on it, so that
results equal the CPU's bit for bit. `torch.sim` offers what `torch.cuda` offers of devices, memory, streams and events.

All counters may be read from any thread. Copies inside an operator are not counted: there are none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from distorch_sim import _backend
from distorch_sim._backend import IN_PYTHON, MAX_DEVICES, sim_core

__all__ = [
    "IN_PYTHON",
    "MAX_DEVICES",
    "abandon",
    "allocated",
    "allocation_count",
    "clear_faults",
    "copied",
    "copy_count",
    "fail_allocation",
    "fail_copy",
    "faults",
    "faults_fired",
    "install",
    "link_gbps",
    "reset_counters",
    "take_back",
    "transfers",
]

# Nominal bandwidth in GB/s (2^30 bytes a second) where `install` is told nothing else.
HOST_LINK_GBPS = 25.0
PEER_LINK_GBPS = 20.0

_links: dict[tuple[str, str], float] = {}


def install(
    capacities: Sequence[int] = (2**30,), links: Mapping[tuple[str, str], float] | None = None
) -> None:
    """Register the device type `sim` and `torch.sim`, with `len(capacities)` devices of so many bytes each.

    `links` gives nominal bandwidths in GB/s for ordered pairs such as `("cpu", "sim:0")`; a pair named in one
    direction only holds for both. May be called again to change capacities and links while nothing is allocated on
    any device; raises RuntimeError otherwise. Counters, peaks and faults start anew.
    """
    _backend.register()
    sim_core.configure([int(c) for c in capacities])
    sim_core.reset_counters()
    clear_faults()
    _links.clear()
    for (source, target), gbps in (links or {}).items():
        _links[source, target] = float(gbps)
    for (source, target), gbps in (links or {}).items():
        _links.setdefault((target, source), float(gbps))


def allocated() -> dict[str, int]:
    """Return the bytes allocated on every device that holds any."""
    counts = {_name(i): int(sim_core.counters(i)[1]) for i in range(sim_core.device_count())}
    return {device: count for device, count in counts.items() if count}


def abandon() -> None:
    """Stop counting what is allocated now; its tensors stay usable. For a run that goes on after a test left some."""
    sim_core.abandon()


def take_back(storage: torch.UntypedStorage) -> None:
    """Free a storage's memory while tensors hold it. In Python's form it stays usable, and counts nowhere."""
    if IN_PYTHON:
        sim_core.abandon_at(storage.data_ptr())
    else:
        storage.resize_(0)


def _place(device: str) -> int:
    if device == "cpu":
        return int(sim_core.HOST)
    kind, _, index = device.partition(":")
    if kind != "sim" or not index.isdigit():
        raise ValueError(f"{device!r} is neither 'cpu' nor 'sim:N'")
    if int(index) >= MAX_DEVICES:
        raise ValueError(f"{device!r}: there are at most {MAX_DEVICES} devices")
    return int(index)


def _name(place: int) -> str:
    return "cpu" if place == sim_core.HOST else f"sim:{place}"


def copied(source: str, target: str) -> int:
    """Return the bytes copied from `source` to `target` ("cpu" or "sim:N") since `reset_counters()`."""
    return int(sim_core.copied(_place(source), _place(target)))


def transfers() -> dict[tuple[str, str], int]:
    """Return the bytes of every ordered pair of places between which anything was copied."""
    places = [int(sim_core.HOST), *range(sim_core.device_count())]
    pairs = {(_name(a), _name(b)): int(sim_core.copied(a, b)) for a in places for b in places}
    return {pair: count for pair, count in pairs.items() if count}


def copy_count() -> int:
    """Return how many copies touched a simulated device since `reset_counters()`."""
    return int(sim_core.copy_count())


def allocation_count(device: str) -> int:
    """Return how many allocations succeeded on `device` since `reset_counters()`."""
    return int(sim_core.counters(_place(device))[3])


def reset_counters() -> None:
    """Set copied bytes, copy counts and allocation counts to zero. Peaks: `torch.sim.reset_peak_memory_stats`."""
    sim_core.reset_counters()


def fail_allocation(nth: int, sticky: bool = False) -> None:
    """Make the `nth` allocation from now on (1 is the next) raise torch.OutOfMemoryError; with `sticky` all later too."""
    sim_core.fail_allocation(nth, sticky)


def fail_copy(nth: int, sticky: bool = False) -> None:
    """Make the `nth` copy from now on (1 is the next) raise RuntimeError; with `sticky` every later one too."""
    sim_core.fail_copy(nth, sticky)


def faults_fired() -> int:
    """Return how many allocations and copies failed as told, since they were last told to."""
    return int(sim_core.faults_fired())


def clear_faults() -> None:
    """Switch both faults off."""
    sim_core.fail_allocation(0, False)
    sim_core.fail_copy(0, False)


@contextmanager
def faults(*, allocation: int = 0, copy: int = 0, sticky: bool = False) -> Iterator[None]:
    """Inject faults inside a `with`; 0 injects none."""
    fail_allocation(allocation, sticky)
    fail_copy(copy, sticky)
    try:
        yield
    finally:
        clear_faults()


def link_gbps(source: str, target: str) -> float:
    """Return the nominal bandwidth from `source` to `target` in GB/s; 0.0 for a device and itself."""
    _place(source), _place(target)
    if source == target:
        return 0.0
    host = "cpu" in (source, target)
    return _links.get((source, target), HOST_LINK_GBPS if host else PEER_LINK_GBPS)
