# SPDX-License-Identifier: Apache-2.0
"""What a run found, as data: scenes, memory, the exit status, and the JSON that docs/end-to-end.md describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from distorch.tools.e2e.drift import Drift
from distorch.tools.e2e.events import Outcome, Status
from distorch.tools.stats import LogStatistics

# The exit status; where several apply, the one that stands higher in EXIT_ORDER.
GOOD, FAILED, USAGE, TIMED_OUT, LEAKED, UNREACHABLE, CACHED = range(7)
EXIT_ORDER = (UNREACHABLE, FAILED, TIMED_OUT, LEAKED, CACHED)
_OF_STATUS = {
    Status.REFUSED: FAILED,
    Status.FAILED: FAILED,
    Status.INTERRUPTED: FAILED,
    Status.TIMEOUT: TIMED_OUT,
    Status.LOST: UNREACHABLE,
}

# How much of a scene came from ComfyUI's cache.
FRESH = "none"
PARTLY = "part"
ALL = "all"


@dataclass(frozen=True)
class NodeTime:
    """A node that ran in a scene; `seconds` is None where its end was not seen."""

    id: str
    kind: str
    title: str
    seconds: float | None


@dataclass
class SceneResult:
    """One scene. Times in seconds since 1970, memory in bytes by device."""

    number: int
    name: str
    file: str
    outcome: Outcome
    prompt_id: str = ""
    queued: float = 0.0
    ended: float = 0.0
    seconds: float = 0.0  # of work, waiting in the queue not counted
    nodes: int = 0
    ran: list[NodeTime] = field(default_factory=list)
    cached_nodes: list[str] = field(default_factory=list)
    cache: str = FRESH
    figures_hold: bool = True  # False: nothing was loaded, so the memory figures say nothing
    notes: list[str] = field(default_factory=list)
    samples: int = 0
    peak: dict[str, int] = field(default_factory=dict)
    rest: dict[str, int] = field(default_factory=dict)
    rested: float = 0.0  # when that was read
    epoch: int = 0  # counts restarts of the server: memory is only compared within one

    @property
    def good(self) -> bool:
        """Whether it ended as it should, whatever memory did."""
        return self.outcome.status is Status.SUCCESS

    @property
    def worked(self) -> bool:
        """Whether its memory at rest is that after work: it was neither refused nor taken whole from the cache."""
        return bool(self.rest and self.prompt_id) and self.cache != ALL

    def to_json(self, first: Mapping[str, int]) -> dict[str, Any]:
        """The JSON of a scene; `first` is the memory at rest after the first one."""
        found = {k: v for k, v in asdict(self).items() if k not in ("outcome", "epoch")}
        return {
            **found,
            "status": self.outcome.status.value,
            "message": self.outcome.message,
            "error_node": self.outcome.node,
            "error_type": self.outcome.error,
            "rise": {d: used - first[d] for d, used in self.rest.items() if d in first},
        }


@dataclass
class RunResult:
    """A whole run. `complete` is False in a file written while it goes on, and where it was stopped."""

    url: str
    comfyui: str = ""
    started: float = 0.0
    ended: float = 0.0
    complete: bool = False
    message: str = ""  # why it did not begin, or ended early
    unreachable: bool = False
    signal: int = 0
    scenes: list[SceneResult] = field(default_factory=list)
    statistics: LogStatistics = field(default_factory=LogStatistics)
    drift: list[Drift] = field(default_factory=list)
    allow_cached: bool = False

    @property
    def baseline(self) -> dict[str, int]:
        """Memory at rest after the first scene that has it."""
        return next((s.rest for s in self.scenes if s.rest and s.prompt_id), {})

    @property
    def exit_status(self) -> int:
        """What the program ends with: docs/end-to-end.md has the table."""
        if self.signal:
            return 128 + self.signal
        found = {
            _OF_STATUS[s.outcome.status] for s in self.scenes if s.outcome.status in _OF_STATUS
        }
        if self.unreachable:
            found.add(UNREACHABLE)
        if any(d.leaks for d in self.drift):
            found.add(LEAKED)
        if not self.allow_cached and any(s.good and not s.figures_hold for s in self.scenes):
            found.add(CACHED)
        return next((status for status in EXIT_ORDER if status in found), GOOD)

    def to_json(self) -> dict[str, Any]:
        """The JSON of the run."""
        return {
            "version": 1,
            "url": self.url,
            "comfyui_version": self.comfyui,
            "started": self.started,
            "ended": self.ended,
            "complete": self.complete,
            "message": self.message,
            "exit_status": self.exit_status,
            "scenes": [s.to_json(self.baseline) for s in self.scenes],
            "statistics": self.statistics.as_json(),
            "drift": [asdict(d) for d in self.drift],
        }
