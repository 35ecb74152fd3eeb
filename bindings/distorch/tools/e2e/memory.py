# SPDX-License-Identifier: Apache-2.0
"""The devices' memory while scenes run: samples throughout, the peak of a scene, what is held at rest after it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from distorch.tools.monitor import BackgroundMonitor, Sample, Sink, SourceChain, open_sources
from distorch.tools.monitor.lines import Chosen
from distorch.tools.monitor.recorder import Event
from distorch.tools.monitor.sinks import StatisticsSink, Timeline

# A level is at rest when it stays within this for a while: allocators give memory back in pieces of 2 MB.
_STEADY_BYTES = 2**20
_STEADY_SECONDS = 0.6
# The pack samples once a second by itself, so that equal readings within a second may be one and the same.
_STEADY_SECONDS_OF_HISTORY = 2.5
_POINTS = 4096  # of each device's timeline


class Keeper:
    """Keeps the samples of the scene that runs; filled by the background thread, read by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: list[Sample] = []
        self.latest: Sample | None = None

    def take(self, event: Event) -> None:
        """Keep a sample; other events are for other sinks."""
        if isinstance(event, Sample):
            with self._lock:
                self.latest = event
                self._recent.append(event)

    def close(self) -> None:
        """What was kept stays."""

    def forget(self) -> None:
        """A new scene begins."""
        with self._lock:
            self._recent.clear()

    def recent(self) -> list[Sample]:
        """Return the samples since `forget`."""
        with self._lock:
            return list(self._recent)


class OwnRuns:
    """Passes events on to a sink, without the prompts that this program did not queue."""

    def __init__(self, sink: Sink, own: set[str]) -> None:
        self._sink, self._own = sink, own

    def take(self, event: Event) -> None:
        """Pass an event on."""
        if isinstance(event, Sample):
            event = replace(event, runs=tuple(r for r in event.runs if r.prompt in self._own))
        self._sink.take(event)

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()


@dataclass(frozen=True)
class SceneMemory:
    """Memory of one scene, bytes by device. `sure` tells that a spike between two samples could not be missed."""

    samples: int
    start: dict[str, int]
    peak: dict[str, int]
    rest: dict[str, int]
    sure: bool
    loaded: bool | None  # whether a model was loaded; None: the server does not tell

    @property
    def rose(self) -> bool:
        """Whether any accelerator went above where it was when the scene began."""
        return any(
            peak > self.start[d] + _STEADY_BYTES
            for d, peak in self.peak.items()
            if d in self.start and d != "cpu"
        )


class MemoryWatch:
    """Samples in the background from entering to leaving; its methods are for the one event loop."""

    def __init__(self, url: str, interval: float, sinks: Sequence[Sink] = ()) -> None:
        """Raises ValueError for an address that is none."""
        self.keeper = Keeper()
        self._own: set[str] = set()
        self.statistics = StatisticsSink(Chosen(every=True))
        self.timeline = Timeline(Chosen(every=True), capacity=_POINTS)
        self._chain: SourceChain = open_sources(url)
        self._background = BackgroundMonitor(
            open_sources(url),
            interval=interval,
            sinks=[self.keeper, OwnRuns(self.statistics, self._own), self.timeline, *sinks],
            capacity=1,  # the sinks keep what is needed
        )
        self._start: dict[str, int] = {}

    def __enter__(self) -> MemoryWatch:
        self._background.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._chain.close()
        self._background.stop()

    @property
    def losses(self) -> str:
        """What the sinks did not take (a full disk), in words; "" for nothing."""
        return self._background.losses

    async def scene_begins(self, label: str, prompt_id: str) -> None:
        """Mark the start of a scene, which will be this prompt."""
        self._own.add(prompt_id)
        self._background.mark(label)
        self.keeper.forget()
        found = await asyncio.to_thread(self._chain.read)
        self._start = _used(found) if isinstance(found, Sample) else {}

    async def scene_ended(self, prompt_id: str, ended: float, settle: float) -> SceneMemory:
        """Wait until memory is at rest, `settle` seconds at most; return the scene's memory."""
        readings = await self._rest(settle)
        during = [s for s in self.keeper.recent() if s.time <= ended]
        after = [
            s for s in readings if s.source == "history"
        ]  # holds the peaks since the scene began
        runs = [run for s in [*during, *after] for run in s.runs if run.prompt == prompt_id]
        peak: dict[str, int] = {}
        for seen in (_highest([*during, *after]), *(run.peak for run in runs)):
            for device, used in seen.items():
                peak[device] = max(peak.get(device, 0), used)
        return SceneMemory(
            samples=len(during),
            start=self._start,
            peak=peak,
            rest=_used(readings[-1]) if readings else {},
            sure=bool(after) or len(during) >= 3,
            loaded=any(node.loaded for run in runs for node in run.nodes) if runs else None,
        )

    async def _rest(self, most: float) -> list[Sample]:
        """Read until the level stays; return all readings, the last of them at rest (or as far as it got)."""
        end = time.monotonic() + most
        readings: list[Sample] = []
        while True:
            found = await asyncio.to_thread(self._chain.read)
            if isinstance(found, Sample):
                readings.append(found)
            if time.monotonic() >= end or _steady(readings):
                return readings
            await asyncio.sleep(0.2)


def _steady(readings: Sequence[Sample]) -> bool:
    if not readings:
        return False
    last, level = readings[-1], _used(readings[-1])
    need = _STEADY_SECONDS_OF_HISTORY if last.source == "history" else _STEADY_SECONDS
    for reading in reversed(readings):
        used = _used(reading)
        accelerators = [d for d in level if d != "cpu"] or list(level)
        if any(abs(used.get(d, 0) - level[d]) > _STEADY_BYTES for d in accelerators):
            return False
        if last.time - reading.time >= need:
            return True
    return False


def _used(sample: Sample) -> dict[str, int]:
    return {d.device: d.used for d in sample.devices}


def _highest(samples: Iterable[Sample]) -> dict[str, int]:
    found: dict[str, int] = {}
    for sample in samples:
        for d in sample.devices:
            found[d.device] = max(found.get(d.device, 0), d.highest)
    return found
