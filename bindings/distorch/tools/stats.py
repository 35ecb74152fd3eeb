# SPDX-License-Identifier: Apache-2.0
"""Statistics of memory logs: `distorch stats`, and the summary that `distorch monitor` prints.

    statistics = read_logs(["vram-usage.log"])
    print(statistics.text())

Reading is done in C++ (`distorch/telemetry/log_stats.h` has the rules): its time grows with the log, its memory does
not. Sizes are of used memory in MB of 2^20 bytes.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distorch._load import core
from distorch.printable import printable

TITLE = "VRAM Usage Statistics"
_MOST_NAMES = 20  # rows of a table of the text


@dataclass(frozen=True)
class DeviceStatistics:
    """One device.

    Attributes:
        device: "" in the log form that names none.
        samples: how many.
        peak: the largest memory; with the allocator's own peaks where the log has them.
        sampled_peak: the largest memory of a sample.
        minimum, average, median, p95: of the samples.
        peak_time: of the first sample at the peak, in seconds.
        peak_since_1970: or else since midnight.
        interval: the median of the seconds between samples; 0 for a single one.
        gaps: how often there was no sample for more than 2.5 intervals, and 1.5 s more than one.
        gap_seconds: of all gaps together.
        longest_gap: in seconds.
    """

    device: str
    samples: int
    peak: int
    sampled_peak: int
    minimum: int
    average: float
    median: float
    p95: int
    peak_time: float
    peak_since_1970: bool
    interval: float
    gaps: int
    gap_seconds: float
    longest_gap: float

    def peak_clock(self) -> str:
        """The time of the peak as a person reads it, local."""
        if self.peak_since_1970:
            try:
                return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.peak_time))
            except (OSError, OverflowError, ValueError):  # how far calendars go differs
                return f"{self.peak_time:.0f} s after 1970 began"
        seconds = int(self.peak_time)
        return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def block(self, named: bool) -> str:
        """Return the block of text; `named`: with the device in its title."""
        title = f"{TITLE} ({self.device or 'device not named'})" if named else TITLE
        lines = [
            f"=== {title} ===",
            f"Peak VRAM: {self.peak} MB (from {self.samples} samples)",
            f"Average VRAM: {_rounded(self.average)} MB",
            f"Minimum VRAM: {self.minimum} MB",
            f"Median VRAM: {_number(self.median)} MB",
            f"95th percentile: {self.p95} MB",
            f"Time of the peak: {self.peak_clock()}",
        ]
        if self.peak > self.sampled_peak:
            lines.append(
                f"Between samples: {self.peak - self.sampled_peak} MB more than the largest sample, "
                f"{self.sampled_peak} MB"
            )
        lines.append(self._gap_line())
        return "\n".join(lines)

    def _gap_line(self) -> str:
        if self.samples < 2:
            return "Gaps: unknown with one sample"
        every = f"a sample every {_number(self.interval)} s"
        if not self.gaps:
            return f"Gaps: none, {every}"
        return (
            f"Gaps: {self.gaps}, {_number(self.gap_seconds)} s in all, "
            f"the longest {_number(self.longest_gap)} s, {every}"
        )


@dataclass(frozen=True)
class NameStatistics:
    """A model (`type` is its type) or a node (`name` is its class, `type` its id): the largest MB by device.

    `count` and `seconds` are those of the node's runs.
    """

    name: str
    type: str
    count: int
    seconds: float
    peaks: Mapping[str, int]

    @property
    def largest(self) -> int:
        """The largest of its figures."""
        return max(self.peaks.values(), default=0)


@dataclass(frozen=True)
class BadLine:
    """A line that could not be read: which log, its number from 1, why, and how it begins."""

    log: str
    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class LogStatistics:
    """Of all logs together.

    Attributes:
        devices, models, nodes: in the order of appearance.
        failures: looks that failed, by reason.
        lines: in all, blank ones not counted.
        bad_lines: of these, how many could not be read.
        first_bad_lines: the first ten of them.
        clock_changes: how often the clock was set.
        dropped: names beyond what is kept.
        unreadable: message of each log that could not be read.
    """

    devices: list[DeviceStatistics] = field(default_factory=list)
    models: list[NameStatistics] = field(default_factory=list)
    nodes: list[NameStatistics] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    lines: int = 0
    bad_lines: int = 0
    first_bad_lines: list[BadLine] = field(default_factory=list)
    clock_changes: int = 0
    dropped: int = 0
    unreadable: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """Return the blocks of all devices, then models, nodes, failures and bad lines where there are any."""
        parts = [d.block(named=len(self.devices) > 1) for d in self.devices]
        if not parts:
            parts.append("no samples")
        if self.models:
            rows = [f"{m.name} ({m.type})" if m.type else m.name for m in self.models]
            parts.append(_table("Models", self.models, rows))
        if self.nodes:
            rows = [
                f"{n.name} (node {n.type}): {n.count} run{'s' * (n.count != 1)}, "
                f"{n.seconds / n.count:.1f} s each"
                for n in self.nodes
            ]
            parts.append(_table("Nodes", self.nodes, rows))
        notes = self._notes()
        whole = "\n\n".join(parts + ["\n".join(notes)] * bool(notes)) + "\n"
        # Names in a log may be anything, and a terminal obeys what it is given.
        return printable(whole)

    def _notes(self) -> list[str]:
        notes = [f"No answer {count} times: {reason}" for reason, count in self.failures.items()]
        if self.clock_changes:
            notes.append(f"The clock was set {self.clock_changes} times.")
        if self.dropped:
            notes.append(f"{self.dropped} lines name more models or nodes than are kept.")
        if self.bad_lines:
            notes.append(f"Bad lines: {self.bad_lines} of {self.lines}")
            notes += [
                f'  {bad.log}:{bad.line}: {bad.reason}: "{bad.text}"'
                for bad in self.first_bad_lines
            ]
            more = self.bad_lines - len(self.first_bad_lines)
            notes += [f"  and {more} more"] * bool(more)
        return notes


class StatisticsReader:
    """Gathers statistics from logs and pieces of logs. Not thread safe."""

    def __init__(self) -> None:
        self._core = core().LogStats()
        self._unreadable: list[str] = []

    def start(self, name: str) -> None:
        """Begin a log that is fed in pieces."""
        self._core.start(name)

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the log, cut anywhere."""
        self._core.feed(piece)

    def read(self, path: str | os.PathLike[str]) -> bool:
        """Read a file ("-": standard input); False when it cannot be read, which the result then says."""
        failed = self._core.read_file(os.fspath(path))
        if failed is not None:
            self._unreadable.append(str(failed[0]))
        return failed is None

    def result(self) -> LogStatistics:
        """Return the statistics of what was read so far."""
        found = self._core
        return LogStatistics(
            devices=[DeviceStatistics(*row) for row in found.devices()],
            models=[NameStatistics(*row) for row in found.models()],
            nodes=[NameStatistics(*row) for row in found.nodes()],
            failures=dict(found.failures()),
            lines=found.lines,
            bad_lines=found.bad_lines,
            first_bad_lines=[BadLine(*row) for row in found.first_bad_lines()],
            clock_changes=found.clock_changes,
            dropped=found.dropped,
            unreadable=list(self._unreadable),
        )


def read_logs(paths: Iterable[str | os.PathLike[str]]) -> LogStatistics:
    """Return the statistics of several logs, in any of the forms. Unreadable ones are named in the result."""
    reader = StatisticsReader()
    for path in paths:
        reader.read(path)
    return reader.result()


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _table(title: str, names: list[NameStatistics], rows: list[str]) -> str:
    order = sorted(range(len(names)), key=lambda i: (-names[i].largest, names[i].name))
    lines = [f"=== {title} ==="]
    for i in order[:_MOST_NAMES]:
        peaks = ", ".join(f"{size} MB on {device}" for device, size in names[i].peaks.items())
        lines.append(f"{rows[i]}, peak {peaks}" if peaks else rows[i])
    more = len(order) - _MOST_NAMES
    return "\n".join(lines + [f"and {more} more"] * (more > 0))
