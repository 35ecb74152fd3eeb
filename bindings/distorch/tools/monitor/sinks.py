# SPDX-License-Identifier: Apache-2.0
"""Where events go: a log, statistics, the timeline of a plot. Each is bounded in memory however long the run is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from distorch.tools.monitor.lines import Chosen, JsonLines
from distorch.tools.monitor.log_file import LogFile
from distorch.tools.monitor.recorder import Event, Mark
from distorch.tools.monitor.sample import Gap, PromptRun, Sample
from distorch.tools.stats import LogStatistics, StatisticsReader


class LogSink:
    """Writes a log in one of the forms of `lines`."""

    def __init__(self, log: LogFile, form: Callable[[Event], str]) -> None:
        self._log, self._form = log, form

    def take(self, event: Event) -> None:
        """Write the event's lines. Raises OSError when they cannot be written."""
        lines = self._form(event)
        if lines:
            self._log.write(lines)

    def close(self) -> None:
        """Let the file go."""
        self._log.close()


class StatisticsSink:
    """The statistics of a run as `distorch stats` would tell them of its JSON lines."""

    def __init__(self, devices: Chosen) -> None:
        self._reader = StatisticsReader()
        self._reader.start("this run")
        self._form = JsonLines(devices)
        self._lock = threading.Lock()

    def take(self, event: Event) -> None:
        """Count the event."""
        with self._lock:
            self._reader.feed(self._form(event).encode())

    def close(self) -> None:
        """Nothing to let go; the result stays."""

    def result(self) -> LogStatistics:
        """Return the statistics so far. Thread safe."""
        with self._lock:
            return self._reader.result()


@dataclass
class Point:
    """Some time of one device: its begin, the largest used and the largest peak; None: no sample then."""

    time: float
    used: int | None
    peak: int | None = None


@dataclass
class Series:
    """One device's points; neighbours are merged when there are too many, keeping the largest."""

    device: str
    capacity: int
    name: str = ""
    total: int = 0
    points: list[Point] = field(default_factory=list)
    stride: int = 1  # samples in a point
    _in_last: int = 0

    def add(self, time: float, used: int | None, peak: int | None) -> None:
        """Append a sample, or, with None, that there was none."""
        last = self.points[-1] if self.points else None
        if last is not None and used is None and last.used is None:
            return
        if (
            last is not None
            and self._in_last < self.stride
            and (used is None) == (last.used is None)
        ):
            self._merge(last, used, peak)
            self._in_last += 1
            return
        self.points.append(Point(time, used, peak))
        self._in_last = 1
        if len(self.points) > self.capacity:
            self._thin()

    @staticmethod
    def _merge(point: Point, used: int | None, peak: int | None) -> None:
        if used is not None:
            point.used = max(point.used or 0, used)
        if peak is not None:
            point.peak = max(point.peak or 0, peak)

    def _thin(self) -> None:
        merged: list[Point] = []
        for i, point in enumerate(self.points):
            if merged and i % 2 and (point.used is None) == (merged[-1].used is None):
                self._merge(merged[-1], point.used, point.peak)
            else:
                merged.append(point)
        self.points = merged[-self.capacity :]
        self.stride *= 2


class Timeline:
    """What a plot shows of a run: memory by device, marks, prompts. Thread safe."""

    def __init__(self, devices: Chosen, capacity: int = 2000, events: int = 500) -> None:
        self._devices = devices
        self._capacity = capacity
        self._lock = threading.Lock()
        self._series: dict[str, Series] = {}
        self._marks: deque[Mark] = deque(maxlen=events)
        self._runs: dict[tuple[str, float], PromptRun] = {}
        self._events = events

    def take(self, event: Event) -> None:
        """Take an event; changes of the clock are not shown."""
        with self._lock:
            if isinstance(event, Sample):
                self._sample(event)
            elif isinstance(event, Gap):
                for series in self._series.values():
                    series.add(event.time, None, None)
            elif isinstance(event, Mark):
                self._marks.append(event)

    def close(self) -> None:
        """Nothing to let go."""

    def series(self) -> list[Series]:
        """Return copies, in the order in which the devices appeared."""
        with self._lock:
            return [
                Series(
                    s.device,
                    s.capacity,
                    s.name,
                    s.total,
                    [Point(p.time, p.used, p.peak) for p in s.points],
                )
                for s in self._series.values()
            ]

    def marks(self) -> list[Mark]:
        """Return the marks, oldest first."""
        with self._lock:
            return list(self._marks)

    def runs(self) -> list[PromptRun]:
        """Return the prompts, oldest first."""
        with self._lock:
            return list(self._runs.values())

    def _sample(self, sample: Sample) -> None:
        chosen = self._devices.of(sample)
        for d in chosen:
            series = self._series.get(d.device)
            if series is None:
                series = self._series[d.device] = Series(d.device, self._capacity)
            series.name, series.total = d.name or series.name, max(series.total, d.total)
            series.add(sample.time, d.used, d.peak)
        present = {d.device for d in chosen}
        for device, series in self._series.items():
            if device not in present:
                series.add(sample.time, None, None)
        for run in sample.runs:
            self._runs[(run.prompt, run.started)] = replace(run, nodes=())  # a band needs no nodes
        while len(self._runs) > self._events:
            del self._runs[next(iter(self._runs))]
