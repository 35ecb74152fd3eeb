# SPDX-License-Identifier: Apache-2.0
"""Measures the links: every ordered pair of accelerators, and the host with each, from pinned and pageable memory.

CUDA devices are measured by `distorch/transfer` (each way that exists; the bytes are compared after a first copy).
Other accelerators are measured by torch's copies, likewise verified. Simulated devices are not measured: they report
the speeds they were given.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from distorch.devices import accelerator_kinds, canonical_name, device_count, parse_name
from distorch.links import cache, identity

GB = 2**30
# Large enough that starting a copy costs below one percent of it at 60 GB/s.
SAMPLE_BYTES = 64 << 20
REPEATS = 5

# What users know these links by, GB/s.
NOMINAL = {
    "NVLink": 50.8,
    "PCIe 4.0 x16": 27.2,
    "PCIe 3.0 x8": 6.8,
    "PCIe 3.0 x4": 2.1,
}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Link:
    """One ordered pair.

    Attributes:
        source, target: device names; "cpu" is the host.
        memory: "pinned" or "pageable" where one end is the host, "device" between two, "nominal" when not measured.
        gbps: GB/s (2**30 bytes a second); 0.0 when there is an error.
        way: "direct", "peer", "driver", "staged" (docs/links.md), "torch", or "" when not measured.
        peer_access: whether the pair reaches each other's memory; None where that is no question or not known.
        kind: "NVLink x4", "PCIe 4.0 x16", or "" when unknown.
        bytes: how much a copy moved; 0 when not measured.
        measured: UTC, ISO 8601; "" when not measured.
        error: why there is no figure, or "".
    """

    source: str
    target: str
    memory: str
    gbps: float = 0.0
    way: str = ""
    peer_access: bool | None = None
    kind: str = ""
    bytes: int = 0
    measured: str = ""
    error: str = ""

    @property
    def nominal(self) -> float:
        """The speed that a link of this kind is known by, GB/s; 0.0 when there is none."""
        return next((v for kind, v in NOMINAL.items() if self.kind.startswith(kind)), 0.0)


@dataclass(frozen=True)
class Report:
    """The links of some devices, and whether they come from the cache."""

    devices: tuple[str, ...]
    links: tuple[Link, ...]
    cached: bool = False

    def link(self, source: str, target: str, memory: str = "") -> Link | None:
        """Return a link; the first of its pair (pinned before pageable) unless `memory` says which."""
        for each in self.links:
            if (each.source, each.target) == (source, target) and memory in ("", each.memory):
                return each
        return None

    def gbps(self, source: str, target: str, memory: str = "") -> float:
        """Return its speed; 0.0 when unknown."""
        found = self.link(source, target, memory)
        return found.gbps if found else 0.0


def accelerators() -> list[str]:
    """Return the accelerators that this process sees."""
    kinds = accelerator_kinds()
    return [canonical_name(kind, i) for kind in kinds for i in range(device_count(kind))]


def report(
    devices: Iterable[str] | None = None,
    *,
    refresh: bool = False,
    sample_bytes: int = SAMPLE_BYTES,
    progress: Progress = lambda _: None,
) -> Report:
    """Return the links of `devices` (default: all accelerators), from the cache where every one is there.

    Args:
        devices: accelerators by name.
        refresh: measure in any case.
        sample_bytes: how much one copy moves.
        progress: told before each link what is measured.

    Raises:
        ValueError: fewer than one byte.
    """
    chosen = tuple(accelerators() if devices is None else devices)
    if not refresh:
        known = _from_cache(chosen)
        if known is not None:
            return known
    measured = measure(chosen, sample_bytes=sample_bytes, progress=progress)
    rows = [_row(link) for link in measured.links if link.measured]
    if rows:
        try:
            cache.save(rows)
        except OSError as error:
            progress(f"{cache.cache_path()} could not be written: {error}")
    return measured


def measure(
    devices: Iterable[str],
    *,
    sample_bytes: int = SAMPLE_BYTES,
    progress: Progress = lambda _: None,
) -> Report:
    """Measure every link of `devices`, without looking at the cache. A link that fails is in the report with its error."""
    chosen = tuple(devices)
    if sample_bytes < 1:
        raise ValueError(f"a copy needs at least one byte, not {sample_bytes}")
    pairs = list(_pairs(chosen))
    router = _router() if any(device.startswith("cuda:") for device in chosen) else None
    links = []
    for number, (source, target, memory) in enumerate(pairs, 1):
        progress(f"{number} of {len(pairs)}: {source} to {target}, {memory} memory")
        links.append(_measure_one(router, source, target, memory, sample_bytes))
    return Report(chosen, tuple(_merge_nominal(links)))


def _pairs(devices: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    for device in devices:
        for memory in ("pinned", "pageable"):
            yield "cpu", device, memory
            yield device, "cpu", memory
    for source in devices:
        for target in devices:
            if source != target:
                yield source, target, "device"


def _merge_nominal(links: Iterable[Link]) -> Iterator[Link]:
    """Drop the second of two nominal links of one pair: there is no pinned or pageable in what was not measured."""
    seen = set()
    for link in links:
        pair = (link.source, link.target, link.memory)
        if pair not in seen:
            yield link
        seen.add(pair)


def _measure_one(router: Any, source: str, target: str, memory: str, size: int) -> Link:
    ends = {parse_name(device)[0] for device in (source, target)}
    if "sim" in ends:
        simulated: Any = sys.modules["distorch_sim"]
        return Link(source, target, "nominal", float(simulated.link_gbps(source, target)))
    empty = Link(source, target, memory, bytes=size, measured=_now())
    try:
        if router is not None and ends <= {"cuda", "cpu"}:
            found = _by_router(router, empty)
        else:
            found = replace(empty, gbps=_by_torch(source, target, memory, size), way="torch")
    except (RuntimeError, MemoryError, ValueError, TypeError) as error:
        return replace(
            empty, measured="", bytes=0, error=(str(error) or type(error).__name__).splitlines()[0]
        )
    # After the copies: the link runs at full speed now, not as an idle GPU's.
    identity.forget()
    return replace(found, kind=identity.link_kind(source, target))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _router() -> Any:
    """Return a router without anything chosen, or None where CUDA's libraries are not found."""
    from distorch._load import core

    try:
        return core().TransferRouter()
    except RuntimeError:
        return None


def _number(device: str) -> int:
    return -1 if device == "cpu" else parse_name(device)[1]


def _by_router(router: Any, link: Link) -> Link:
    source, target = _number(link.source), _number(link.target)
    if link.memory == "pinned":
        gbps = router.measure(source, target, "direct", True, link.bytes, REPEATS)
        return replace(link, gbps=gbps, way="direct")
    choice = router.choose(source, target)
    pinned = False  # counts for the host's end only
    gbps = router.measure(source, target, choice["way"], pinned, link.bytes, REPEATS)
    access = choice["peer_access"] if link.memory == "device" else None
    return replace(link, gbps=gbps, way=choice["way"], peer_access=access)


def _by_torch(source: str, target: str, memory: str, size: int) -> float:
    """Return GB/s of torch's own copy. Raises RuntimeError when other bytes arrive."""
    import torch

    from distorch.devices import synchronize

    def tensor(device: str) -> torch.Tensor:
        pin = device == "cpu" and memory == "pinned"
        return torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pin)

    def run() -> float:
        begin = time.perf_counter()
        there.copy_(here, non_blocking=True)
        synchronize(source)
        synchronize(target)
        return time.perf_counter() - begin

    pattern = torch.randint(0, 256, (size,), dtype=torch.uint8)
    here, there = tensor(source), tensor(target)
    here.copy_(pattern)
    run()
    if not torch.equal(there.cpu(), pattern):
        raise RuntimeError(f"wrong bytes arrived on {target} from {source} ({size} bytes)")
    return size / max(statistics.median(run() for _ in range(REPEATS)), 1e-9) / GB


def _row(link: Link) -> dict[str, Any]:
    return {
        "source": identity.key_of(link.source),
        "target": identity.key_of(link.target),
        "memory": link.memory,
        "gbps": link.gbps,
        "way": link.way,
        "peer_access": link.peer_access,
        "kind": link.kind,
        "bytes": link.bytes,
        "measured": link.measured,
    }


def _from_cache(devices: tuple[str, ...]) -> Report | None:
    """Return the report from the cache, or None where a link is missing."""
    known = cache.rows_by_ends()
    links = []
    for source, target, memory in _pairs(devices):
        row = known.get((identity.key_of(source), identity.key_of(target), memory))
        if row is not None:
            links.append(Link(**{**row, "source": source, "target": target}))
        elif memory != "pinned":  # which some kinds of device do not have
            return None
    return Report(devices, tuple(links), cached=True) if links else None
