# SPDX-License-Identifier: Apache-2.0
"""Samples the memory of every device once a second in a C++ thread, peaks between samples included.

    from distorch.memory import sampler
    sampler.start()
    window = sampler.sampler().open_window()
    ...
    sampler.sampler().close_window(window)   # {"cuda:0": the most bytes in use since, "cpu": …}

The thread asks NVML, the host and devices that offer a function for it; it runs no Python. What
only torch knows, the figures of its allocators, Python gives it by `push()`: the pack does so once
a second and at both ends of each node, so that a peak shows in the second after it, at the latest.
All sizes are bytes, times seconds since 1970.
"""

from __future__ import annotations

import atexit
import threading
import time
from typing import Any

from distorch import devices as _devices
from distorch._load import core
from distorch.memory.peaks import Ledger

INTERVAL_SECONDS = 1.0
KEPT_SAMPLES = 3600

# A device module may hold the address of a function by which it is read without Python
# (ReadDeviceFunction in distorch/telemetry/sampler.h).
READ_FIGURES = "DISTORCH_READ_FIGURES"


class Sampler:
    """The devices of this process in one MemorySampler. Thread safe."""

    def __init__(self, interval: float = INTERVAL_SECONDS, capacity: int = KEPT_SAMPLES) -> None:
        """`interval` in seconds; `capacity`: samples kept, the oldest dropped first."""
        self.interval = interval
        self._core = core().MemorySampler(interval, capacity)
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._pushed: list[tuple[str, str, int, bool]] = []  # name, kind, index, has a source

    def refresh_devices(self) -> None:
        """Add the devices that have appeared."""
        with self._lock:
            if "cpu" not in self._known:
                self._known.add("cpu")
                self._core.add_host("cpu")
            for kind in _devices.accelerator_kinds():
                count = _devices.device_count(kind)
                names = [_devices.canonical_name(kind, i) for i in range(count)]
                if not set(names) <= self._known:
                    self._add_kind(kind, names)

    def _add_kind(self, kind: str, names: list[str]) -> None:
        address = int(getattr(_devices.device_module(kind), READ_FIGURES, 0))
        nvml = _devices._nvml() if kind == "cuda" else {}
        for index, name in enumerate(names):
            if name in self._known:
                continue
            self._known.add(name)
            if address:
                self._core.add_function(name, address, index)
                continue
            known = nvml.get(index)
            driver = (
                known is not None
                and known.total is not None
                and self._core.add_nvml(name, known.index, known.slice)
            )
            if not driver:
                self._core.add_pushed(name)
            self._pushed.append((name, kind, index, driver))

    def push(self) -> None:
        """Tell the sampler what torch's allocators hold, and held at most since the last push."""
        self.refresh_devices()
        with self._lock:
            for name, kind, index, driver in self._pushed:
                if _devices.has_context(kind, index):
                    self._push_one(name, kind, index, driver)

    def _push_one(self, name: str, kind: str, index: int, driver: bool) -> None:
        ledger = Ledger.of(kind)
        total = used = 0
        if not driver:
            total, used = _total_and_used(name)
        if ledger is not None:
            figures = ledger.take(index)
            held = (figures.allocated, figures.reserved, figures.reserved_peak)
        else:
            info = _devices.device_info(name)
            held = (info.allocated, info.reserved, info.reserved)
        self._core.push(
            name,
            total=total,
            used=used,
            allocated=held[0],
            reserved=held[1],
            reserved_peak=held[2],
        )

    def start(self) -> None:
        """Begin to sample; a second call does nothing. It ends with the interpreter at the latest."""
        self.push()
        if not self._core.running:
            self._core.start()
            atexit.register(self.stop)

    def stop(self) -> None:
        """Return when no more samples are taken; a second call does nothing."""
        self._core.stop()
        atexit.unregister(self.stop)

    @property
    def running(self) -> bool:
        """Whether the thread runs; never in the child of a fork."""
        return bool(self._core.running)

    @property
    def cpu_seconds(self) -> float:
        """The processor time that the thread has used."""
        return float(self._core.cpu_seconds)

    def take_sample(self) -> None:
        """Take a sample now, besides those of the thread."""
        self.push()
        self._core.take_sample()

    def samples(self, since: float) -> list[dict[str, Any]]:
        """Return the samples at `since` or later, oldest first, as `GET /distorch/history` has them."""
        found: list[dict[str, Any]] = self._core.samples(since)
        return found

    def last(self) -> dict[str, Any] | None:
        """Return the newest sample."""
        found = self.samples(time.time() - 3 * self.interval)
        return found[-1] if found else None

    def used(self) -> dict[str, int]:
        """Return what was in use on each device when it was last read; reads nothing."""
        return dict(self._core.used())

    def open_window(self) -> int:
        """Begin to follow the peaks; close_window() ends it."""
        self.push()  # what was until now is not the window's
        return int(self._core.open_window())

    def close_window(self, window: int) -> dict[str, int]:
        """Return the most bytes that were in use on each device since the window was opened."""
        self.push()
        return dict(self._core.close_window(window))

    def window_peaks(self, window: int) -> dict[str, int]:
        """Return the same and leave the window open."""
        self.push()
        return dict(self._core.window_peaks(window))


def _total_and_used(name: str) -> tuple[int, int]:
    info = _devices.device_info(name)
    if info.total is None or info.used is None:
        return 0, 0
    cached = max(0, info.reserved - info.allocated)  # counted as free there, used here
    return info.total, max(0, info.used + cached)


_sampler: Sampler | None = None
_making = threading.Lock()


def sampler() -> Sampler:
    """Return the sampler of this process, which start() sets going."""
    global _sampler
    with _making:
        if _sampler is None:
            _sampler = Sampler()
        return _sampler


def start() -> Sampler:
    """Set the sampler of this process going."""
    found = sampler()
    found.start()
    return found
