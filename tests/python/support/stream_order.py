# SPDX-License-Identifier: Apache-2.0
"""Streams and events with vector clocks: says whether two accesses to a slot are ordered, whatever runs first.

`Gpu` stands in for `torch.cuda` in the engine's streaming. An access is ordered behind another when an event or the
stream itself says so; that it happens to come later does not count.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Clock = dict[int, int]  # by stream


class Stream:
    """A queue. `clock` is what has happened before whatever is queued next."""

    _ids = itertools.count(1)

    def __init__(self, device: Any = None) -> None:
        self.number = next(self._ids)
        self.clock: Clock = {}

    def step(self) -> tuple[int, int]:
        """Queue something; returns its (stream, time)."""
        self.clock[self.number] = self.clock.get(self.number, 0) + 1
        return self.number, self.clock[self.number]

    def wait_event(self, event: Event) -> None:
        for stream, time in event.clock.items():
            self.clock[stream] = max(self.clock.get(stream, 0), time)

    def wait_stream(self, other: Stream) -> None:
        event = Event()
        event.record(other)
        self.wait_event(event)


class Event:
    """Waiting for one that was never recorded waits for nothing, as with CUDA."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.clock: Clock = {}

    def record(self, stream: Stream) -> None:
        stream.step()
        self.clock = dict(stream.clock)

    def query(self) -> bool:
        return True


@dataclass
class _Slot:
    writes: list[tuple[int, int]] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)


class Gpu:
    """The device module, and what was done to each slot."""

    Stream, Event = Stream, Event

    def __init__(self) -> None:
        self._default = Stream()
        self._current = threading.local()
        self._slots: dict[int, _Slot] = {}
        self.violations: list[str] = []

    def current_stream(self, device: Any = None) -> Stream:
        return getattr(self._current, "stream", self._default)

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    def allocated(self, slot: int) -> None:
        """The slot's memory was in use by what is queued on the current stream."""
        self._slots[slot] = _Slot(reads=[self.current_stream().step()])

    def written(self, slot: int) -> None:
        stream = self.current_stream()
        now, state = stream.step(), self._slots[slot]
        self._check(stream, [*state.reads, *state.writes], f"slot {slot} overwritten early")
        state.writes, state.reads = [now], []

    def read(self, slot: int) -> None:
        stream = self.current_stream()
        now, state = stream.step(), self._slots[slot]
        self._check(stream, state.writes, f"slot {slot} read before its copy")
        state.reads.append(now)

    def _check(self, stream: Stream, accesses: list[tuple[int, int]], what: str) -> None:
        if any(stream.clock.get(other, 0) < time for other, time in accesses):
            self.violations.append(what)
