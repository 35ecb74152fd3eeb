# SPDX-License-Identifier: Apache-2.0
"""Samples in the background, at a steady pace, into sinks; bounded in memory however long it runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from distorch.tools.monitor.sample import Gap, Sample

CAPACITY = 10_000  # samples kept: half a day at one every 5 s
_CLOCK_JUMP = 2.0  # seconds by which the wall clock may drift between two looks


def steady() -> float:
    """Return seconds that go on while the machine sleeps: a night in suspend is a gap, no change of the clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def next_tick(last: float, now: float, interval: float) -> float:
    """Return the first of `last` + interval, + 2 intervals, … that is not before `now`: those missed are dropped."""
    planned = last + interval
    return planned if planned >= now else now + interval - (now - planned) % interval


@dataclass(frozen=True)
class Mark:
    """A moment that the caller named, such as the begin of a scene."""

    time: float
    label: str


@dataclass(frozen=True)
class ClockJump:
    """The wall clock was set: times before and after do not compare. `seconds` is by how much, forward positive."""

    time: float
    seconds: float


Event = Sample | Gap | Mark | ClockJump


class Reader(Protocol):
    """What is sampled; `SourceChain` is one."""

    def read(self) -> Sample | Gap: ...
    def close(self) -> None: ...


class Sink(Protocol):
    """Takes every event, in order, in the monitor's threads, one at a time. An error it raises is kept and counted;
    it is given the next event all the same."""

    def take(self, event: Event) -> None: ...
    def close(self) -> None: ...


class BackgroundMonitor:
    """Reads `sources` every `interval` seconds in a thread of its own, from entering the context until `stop`.

    The first look is taken at once. A look that takes longer than the interval drops the ticks it missed. All methods
    may be called from any thread. The record ends with a last look when the monitor is stopped.
    """

    def __init__(
        self,
        sources: Reader,
        interval: float = 5.0,
        sinks: Sequence[Sink] = (),
        *,
        capacity: int = CAPACITY,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = steady,
    ) -> None:
        """Raises ValueError for an interval that is not positive."""
        if not 0 < interval < 86400 * 365:
            raise ValueError(f"the interval must be positive, not {interval}")
        self.interval = interval
        self._sources = sources
        self._sinks = list(sinks)
        self._wall, self._monotonic = wall, monotonic
        self._samples: deque[Sample] = deque(maxlen=capacity)
        self._marks: deque[Mark] = deque(maxlen=capacity)
        self._lock = threading.Lock()  # of what is kept
        self._reading = threading.Lock()  # of the sources
        self._deliver = threading.Lock()  # of the sinks: one event at a time
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._offset: float | None = None
        self._closed = False
        self.gaps = 0
        self.taken = 0  # samples in all
        self.sink_errors = 0
        self.last_sink_error = ""
        self.last_gap: Gap | None = None

    def __enter__(self) -> BackgroundMonitor:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> BackgroundMonitor:
        """Begin. Raises RuntimeError when it was begun before."""
        if self._thread is not None:
            raise RuntimeError("a monitor runs once")
        thread = threading.Thread(target=self._run, name="distorch-monitor", daemon=True)
        thread.start()  # may fail: then there is none
        self._thread = thread
        return self

    def stop(self, timeout: float = 10.0) -> bool:
        """End the thread and close the sinks; calling it again does nothing.

        Returns:
            Whether the thread ended within `timeout` seconds. It is a daemon: one that hangs in the driver, or in a
            sink, does not keep the process; a sink that hangs is left open.
        """
        self._stopping.set()
        thread = self._thread
        if thread is threading.current_thread():
            return True
        if thread is not None:
            thread.join(timeout / 2)
            if thread.is_alive():  # a question to a server that hangs
                self._sources.close()
                thread.join(timeout / 2)
        if not self._deliver.acquire(timeout=max(timeout / 2, 0.1)):
            return False  # a sink hangs: its disk, its terminal
        try:
            if not self._closed:
                self._closed = True
                self._sources.close()
                for sink in self._sinks:
                    self._guard(sink.close)
        finally:
            self._deliver.release()
        return thread is None or not thread.is_alive()

    @property
    def losses(self) -> str:
        """What the sinks did not take, in words; "" for nothing."""
        if not self.sink_errors:
            return ""
        return f"{self.sink_errors} events could not be written: {self.last_sink_error}"

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def samples(self) -> list[Sample]:
        """Return the samples kept, oldest first."""
        with self._lock:
            return list(self._samples)

    def marks(self) -> list[Mark]:
        """Return the marks kept, oldest first."""
        with self._lock:
            return list(self._marks)

    def mark(self, label: str) -> None:
        """Name this moment in the record."""
        mark = Mark(self._wall(), label)
        with self._lock:
            self._marks.append(mark)
        self._give(mark)

    def look(self) -> Sample | Gap:
        """Take a look now, besides the regular ones, and return it."""
        with self._reading:
            event = self._sources.read()
            self._take(event)
        return event

    def _run(self) -> None:
        next_look = self._monotonic()
        while True:
            self._check_clock()
            self.look()
            now = self._monotonic()
            next_look = next_tick(next_look, now, self.interval)
            if self._stopping.wait(next_look - now):
                break
        self.look()

    def _check_clock(self) -> None:
        wall = self._wall()
        offset = wall - self._monotonic()
        if self._offset is not None and abs(offset - self._offset) > _CLOCK_JUMP:
            self._give(ClockJump(wall, offset - self._offset))
        self._offset = offset

    def _take(self, event: Sample | Gap) -> None:
        with self._lock:
            if isinstance(event, Sample):
                self.taken += 1
                self._samples.append(event)
            else:
                self.gaps += 1
                self.last_gap = event
        self._give(event)

    def _give(self, event: Event) -> None:
        with self._deliver:
            if self._closed:
                return
            for sink in self._sinks:
                self._guard(lambda sink=sink: sink.take(event))  # type: ignore[misc]

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a full disk costs lines, never the run
            with contextlib.suppress(Exception):
                self.last_sink_error = f"{type(error).__name__}: {error}"
            self.sink_errors += 1
