# SPDX-License-Identifier: Apache-2.0
"""Devices as bars with sparklines in a terminal of any width; what the live views of monitor and e2e share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distorch.tools.monitor.sinks import Point

_GB, _MB = 2**30, 2**20
_BLOCKS = "▁▂▃▄▅▆▇█"
BAR = 30  # characters of a bar where there is room
_LEAST_BAR = 8
_LEAST_SPARK, _MOST_SPARK = 8, 60
_SPACE = 2


@dataclass(frozen=True)
class Row:
    """One device; sizes in bytes, `total` 0 when unknown. `peak` is the largest so far, `points` its last looks."""

    device: str
    used: int
    total: int
    peak: int
    points: Sequence[Point] = ()

    @property
    def full(self) -> int:
        """What the whole bar stands for."""
        return self.total or self.peak or 1

    @property
    def sizes(self) -> str:
        """As "9.5 / 24.0 GB", or "201 MB / 24.0 GB"."""
        if not self.total:
            return amount(self.used)
        used = amount(self.used)
        return f"{used.removesuffix(' GB')} / {self.total / _GB:.1f} GB"


class DeviceBars:
    """A line for each device, as wide as the terminal allows; rich draws it. `stale`: the figures are old."""

    def __init__(self, rows: Sequence[Row], stale: bool = False) -> None:
        self._rows, self._stale = rows, stale

    def __rich_console__(self, _console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        rows = self._rows
        name = max((len(r.device) for r in rows), default=0)
        sizes = max((len(r.sizes) for r in rows), default=0)
        peak = max((len(_peak(r)) for r in rows), default=0)
        room = options.max_width - name - sizes - 2 * _SPACE
        peaks = room - peak - _SPACE >= _LEAST_BAR
        room -= (peak + _SPACE) * peaks
        looks = any(r.points for r in rows)
        length, spark = widths(room) if looks else (max(min(room, BAR), _LEAST_BAR), 0)
        gap = " " * _SPACE
        for r in rows:
            line = Text(no_wrap=True, overflow="ellipsis")
            line.append(r.device.ljust(name) + gap)
            line.append_text(bar(r.used / r.full, r.peak / r.full, length, self._stale))
            line.append(gap + r.sizes.rjust(sizes))
            if peaks:
                line.append(gap + _peak(r).ljust(peak))
            if spark:
                line.append(gap + sparkline(r.points, r.full, spark))
            yield line


def widths(room: int) -> tuple[int, int]:
    """Return (of the bars, of the sparklines) for the characters that both have; no sparkline: 0.

    >>> widths(100), widths(40), widths(12)
    ((30, 60), (19, 19), (12, 0))
    """
    both = room - _SPACE
    if both < _LEAST_BAR + _LEAST_SPARK:
        return max(min(room, BAR), _LEAST_BAR), 0
    length = min(BAR, both // 2)
    return length, min(both - length, _MOST_SPARK)


def amount(size: int) -> str:
    """Return "9.5 GB", or below 1 GB "201 MB"."""
    return f"{size / _GB:.1f} GB" if size >= _GB else f"{size / _MB:.0f} MB"


def _peak(row: Row) -> str:
    return f"peak {amount(row.peak).removesuffix(' GB')}"


def sparkline(points: Sequence[Point], full: int, width: int = 40) -> str:
    """Return the last points as a row of blocks, the newest at its right end; a blank is a gap."""
    if full <= 0:
        return ""
    shown = []
    for p in points[-width:]:
        if p.used is None:
            shown.append(" ")
            continue
        level = int(max(p.used, p.peak or 0) / full * len(_BLOCKS))
        shown.append(_BLOCKS[min(max(level, 0), len(_BLOCKS) - 1)])
    return "".join(shown)


def bar(used: float, peak: float, length: int = BAR, stale: bool = False) -> Any:
    """Return a bar for rich: the share in use, and a mark at the largest so far."""
    from rich.text import Text

    filled = round(min(max(used, 0.0), 1.0) * length)
    mark = round(min(max(peak, 0.0), 1.0) * length) - 1  # -1: nothing to mark
    colour = "grey50" if stale else "red" if used > 0.95 else "yellow" if used > 0.85 else "green"
    text = Text("█" * filled, style=colour)
    text.append("░" * (length - filled), style="grey50")
    if mark >= filled and mark >= 0:
        text = Text.assemble(text[:mark], ("|", "bold red"), text[mark + 1 :])
    return text
