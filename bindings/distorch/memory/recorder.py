# SPDX-License-Identifier: Apache-2.0
"""What each prompt and each of its nodes needed: time, the peak on every device, models it loaded.

Fed by the server's own execution events (patches/seams/node_events.py); the peaks come from windows of
the sampler, so what rose and fell between two samples is in them. The newest runs are kept, with
their first nodes: a server that runs for months does not grow. Thread safe. Nothing here raises for
events in a wrong order: a node that never ended ends with its prompt, a prompt with the next one.
All sizes are bytes, times seconds since 1970.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

KEPT_RUNS = 100
KEPT_NODES = 500  # of one run
KEPT_LOADS = 50  # of one node

STATUSES = ("running", "success", "error", "interrupted")


class Windows(Protocol):
    """Follows peaks between two moments; distorch.memory.sampler.Sampler."""

    def open_window(self) -> int: ...
    def close_window(self, window: int) -> dict[str, int]: ...
    def window_peaks(self, window: int) -> dict[str, int]: ...


@dataclass(frozen=True)
class Held:
    """A model in memory: its bytes on each device."""

    name: str
    type: str
    bytes: Mapping[str, int]


# Every model by an id that stays, as it lies now.
Inventory = Callable[[], Mapping[int, Held]]


@dataclass
class NodeRun:
    """One execution of a node."""

    node: str
    kind: str
    started: float
    ended: float | None = None
    peak: dict[str, int] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)  # in use when it began
    loaded: list[Held] = field(default_factory=list)
    window: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return it as `GET /distorch/history` has it."""
        loads = [{"name": h.name, "type": h.type, "bytes": dict(h.bytes)} for h in self.loaded]
        return {
            "node": self.node,
            "kind": self.kind,
            "started": self.started,
            "ended": self.ended,
            "peak": dict(self.peak),
            "growth": {d: max(0, n - self.before.get(d, n)) for d, n in self.peak.items()},
            "loaded": loads,
        }


@dataclass
class Run:
    """One prompt. `nodes` in the order in which they began; those that were cached are not in it."""

    prompt: str
    started: float
    ended: float | None = None
    status: str = "running"
    peak: dict[str, int] = field(default_factory=dict)
    nodes: list[NodeRun] = field(default_factory=list)
    window: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return it as `GET /distorch/history` has it."""
        return {
            "prompt": self.prompt,
            "started": self.started,
            "ended": self.ended,
            "status": self.status,
            "peak": dict(self.peak),
            "nodes": [node.as_json() for node in self.nodes],
        }


@dataclass
class Totals:
    """Since the process began."""

    runs: collections.Counter[str] = field(default_factory=collections.Counter)  # by status
    node_seconds: collections.Counter[str] = field(default_factory=collections.Counter)  # by kind
    nodes: collections.Counter[str] = field(default_factory=collections.Counter)  # by kind
    loaded: collections.Counter[str] = field(default_factory=collections.Counter)  # by device
    last_peak: dict[str, int] = field(default_factory=dict)  # of the run that ended last


class RunRecorder:
    """The runs of one server."""

    def __init__(
        self,
        windows: Windows,
        inventory: Inventory,
        *,
        clock: Callable[[], float] = time.time,
        kept_runs: int = KEPT_RUNS,
        kept_nodes: int = KEPT_NODES,
    ) -> None:
        """`inventory` is asked when a prompt begins and at the end of each node."""
        self._windows, self._inventory, self._clock = windows, inventory, clock
        self._kept_nodes = kept_nodes
        self._runs: collections.deque[Run] = collections.deque(maxlen=kept_runs)
        self._open: dict[str, Run] = {}
        self._nodes: dict[tuple[str, str], NodeRun] = {}
        self._held: Mapping[int, Held] = {}
        self._lock = threading.RLock()
        self.totals = Totals()
        #: Called with a run's JSON when one of its nodes, or the run, has ended.
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    # Events

    def prompt_started(self, prompt: str) -> None:
        """A prompt begins; one that still runs has been lost."""
        with self._lock:
            for lost in list(self._open):
                self.prompt_ended(lost, "error")
            self._held = dict(self._inventory())
            run = Run(prompt, self._clock(), window=self._windows.open_window())
            self._open[prompt] = run
            self._runs.append(run)

    def prompt_ended(self, prompt: str, status: str) -> None:
        """It is over; `status` is one of STATUSES."""
        with self._lock:
            for key in [key for key in self._nodes if key[0] == prompt]:
                self.node_ended(*key)
            run = self._open.pop(prompt, None)
            if run is None:
                return
            run.ended, run.status = self._clock(), status
            run.peak = self._windows.close_window(run.window)
            self.totals.runs[status] += 1
            self.totals.last_peak = run.peak
            told = run.as_json()
        self._tell(told)

    def node_started(self, prompt: str, node: str, kind: str) -> None:
        """A node begins."""
        with self._lock:
            if prompt not in self._open:
                self.prompt_started(prompt)
            window = self._windows.open_window()
            before = self._windows.window_peaks(window)
            started = NodeRun(node, kind, self._clock(), before=before, window=window)
            self._nodes[prompt, node] = started
            run = self._open[prompt]
            if len(run.nodes) < self._kept_nodes:
                run.nodes.append(started)

    def node_ended(self, prompt: str, node: str) -> None:
        """It is over, however it ended."""
        with self._lock:
            done = self._nodes.pop((prompt, node), None)
            if done is None:
                return
            done.ended = self._clock()
            done.peak = self._windows.close_window(done.window)
            now = dict(self._inventory())
            arrived = arrivals(self._held, now)
            self._held = now
            done.loaded = sorted(arrived, key=lambda h: -sum(h.bytes.values()))[:KEPT_LOADS]
            self._count(done, arrived)
            run = self._open.get(prompt)
            told = run.as_json() if run is not None else None
        if told is not None:
            self._tell(told)

    def _count(self, done: NodeRun, arrived: list[Held]) -> None:
        self.totals.nodes[done.kind] += 1
        self.totals.node_seconds[done.kind] += max(0.0, (done.ended or 0.0) - done.started)  # type: ignore[assignment]
        for held in arrived:
            for device, size in held.bytes.items():
                self.totals.loaded[device] += size

    def _tell(self, run: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener(run)

    # Answers

    def runs(self, since: float = 0.0, prompt: str | None = None) -> list[dict[str, Any]]:
        """Return the runs that ended at `since` or later or still run, oldest first.

        Args:
            since: seconds since 1970.
            prompt: only the runs of this prompt.
        """
        with self._lock:
            chosen = [
                run
                for run in self._runs
                if (run.ended is None or run.ended >= since) and prompt in (None, run.prompt)
            ]
            for run in chosen:
                if run.ended is None:
                    run.peak = self._windows.window_peaks(run.window)
            for node in self._nodes.values():
                node.peak = self._windows.window_peaks(node.window)
            return [run.as_json() for run in chosen]

    def running(self) -> NodeRun | None:
        """Return the node that began last and has not ended."""
        with self._lock:
            return next(reversed(self._nodes.values()), None)


def arrivals(before: Mapping[int, Held], after: Mapping[int, Held]) -> list[Held]:
    """Return what `after` has more of, each model with the bytes that arrived on each device.

    A model that went back to RAM as a whole has not been loaded there: bytes in RAM count when the
    model has grown by them.
    """
    found = []
    for key, now in after.items():
        old = before[key].bytes if key in before else {}
        more = {d: n - old.get(d, 0) for d, n in now.bytes.items() if n > old.get(d, 0)}
        if "cpu" in more:
            grown = sum(now.bytes.values()) - sum(old.values())
            more["cpu"] = min(more["cpu"], max(0, grown - sum(more.values()) + more["cpu"]))
            if more["cpu"] == 0:
                del more["cpu"]
        if more:
            found.append(Held(now.name, now.type, more))
    return found
