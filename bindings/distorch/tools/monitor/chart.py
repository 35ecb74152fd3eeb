# SPDX-License-Identifier: Apache-2.0
"""The parts of a timeline as plain SVG, for the pictures of monitor and e2e: a panel for each device. No library is needed.

x is time, y is memory; pixels grow downwards. What a panel draws: gaps in grey, memory in use as an area, peaks between
two samples in red above it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from distorch.tools.monitor.lines import clock
from distorch.tools.monitor.sinks import Point, Series

WIDTH, LEFT, RIGHT = 1100, 84, 20
PANEL, SPACE = 150, 46  # height of a panel, and between two
GB, MB = 2**30, 2**20
INK, SOFT, GRID = "#1f2937", "#6b7280", "#e5e7eb"
GAP, PEAK, LINE = "#e5e7eb", "#c62828", "#3b6fb6"
_FONT = "font-family:DejaVu Sans,Arial,sans-serif"
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_TICKS = 10  # at most


def document(height: float, label: str, parts: Iterable[str]) -> str:
    """Return the whole picture; `label` is for those who cannot see it."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
        f'viewBox="0 0 {WIDTH} {height:g}" role="img"><title>{clean(label)}</title>\n'
        f"<style>text{{{_FONT};font-size:11px;fill:{SOFT}}}</style>\n"
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def text(
    x: float, y: float, words: str, *, size: int = 11, colour: str = SOFT, anchor: str = "start", bold: bool = False
) -> str:  # fmt: skip
    """Return words at a place. A halo keeps them apart from lines below."""
    style = f"font-size:{size}px;fill:{colour}" + (";font-weight:bold" if bold else "")
    halo = 'stroke="#ffffff" stroke-width="3" stroke-opacity="0.7" paint-order="stroke"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {halo} style="{style}">{clean(words)}</text>'


def clean(words: str) -> str:
    """Return words as XML takes them."""
    return escape("".join(c if c.isprintable() else " " for c in words))


def highest(point: Point) -> int:
    """Return the most of a point, its peak included."""
    return max(point.used or 0, point.peak or 0)


class Span:
    """From time to x."""

    def __init__(self, begin: float, end: float) -> None:
        self.begin, self.end = begin, max(end, begin + 1.0)

    def x(self, moment: float) -> float:
        """Return where a moment is; what lies outside is put on the edge."""
        share = (moment - self.begin) / (self.end - self.begin)
        return LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)

    def clocks(self) -> list[tuple[float, str]]:
        """Return (x, time of day) of round moments."""
        step = _step(self.end - self.begin)
        offset = time.localtime(self.begin).tm_gmtoff or 0
        first = math.ceil((self.begin + offset) / step) * step - offset
        count = int((self.end - first) / step) + 1
        return [(self.x(m), clock(m)) for m in (first + i * step for i in range(count))]

    def elapsed(self) -> list[tuple[float, str]]:
        """Return (x, time since the begin) of round durations."""
        step = _step(self.end - self.begin)
        count = int((self.end - self.begin) / step) + 1
        return [(self.x(self.begin + i * step), _elapsed(i * step)) for i in range(count)]


def _step(seconds: float) -> int:
    return next((s for s in _STEPS if seconds / s <= _TICKS), math.ceil(seconds / _TICKS))


def _elapsed(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d}"
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def scale_of_device(total: int) -> tuple[float, float]:
    """Return (step, top) of an axis that ends at the device's size, with two to four steps of a power of two."""
    return 2.0 ** math.floor(math.log2(max(total, 2) / 2)), max(total, 1)


def scale_of_data(most: float) -> tuple[float, float]:
    """Return (step, top) of an axis with three to six steps that are round in MB or GB."""
    unit = GB if most >= 4 * GB else MB
    rough = most / unit / 4
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m for m in (1, 2, 5, 10) if m * magnitude >= rough) * magnitude * unit
    return step, step * math.ceil(most / step)


class Panel:
    """One device, its top edge at `y`."""

    def __init__(self, y: float, span: Span, series: Series, scale: tuple[float, float]) -> None:
        self.y, self._span, self._series = y, span, series
        self._step, self._top = scale

    def level(self, size: float) -> float:
        """Return the y of a size."""
        return self.y + PANEL * (1 - min(size / self._top, 1.0))

    def heading(self, *, room: float = 0.0) -> Iterator[str]:
        """Name the device and its peak; `room` pixels are left free at the right end."""
        s = self._series
        name = f"{s.device}  {s.name}" if s.name and s.name != s.device else s.device
        yield text(LEFT, self.y - 7, name, size=13, colour=INK, bold=True)
        top = max((p for p in s.points if p.used is not None), key=highest)
        told = f"peak {_size(highest(top))}" + (f" of {_size(s.total)}" if s.total else "")
        words = f"{told} at {clock(top.time)}"
        yield text(WIDTH - RIGHT - room, self.y - 7, words, size=12, anchor="end")

    def axes(self, ticks: Iterable[tuple[float, str]]) -> Iterator[str]:
        """Draw the sizes at the left, and the times below."""
        unit, name = (MB, "MB") if self._step % (GB / 4) else (GB, "GB")
        for i in range(round(self._top // self._step) + 1):
            y = self.level(i * self._step)
            yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>'
            yield text(LEFT - 8, y + 4, f"{i * self._step / unit:g} {name}", anchor="end")
        for x, words in ticks:
            yield f'<path d="M{x:.1f} {self.y + PANEL}v4" stroke="{SOFT}"/>'
            anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
            yield text(x, self.y + PANEL + 16, words, size=10, anchor=anchor)

    def memory(self, colour: str = LINE) -> Iterator[str]:
        """Draw gaps, what is in use, and the peaks."""
        yield from self._gaps()
        for stretch in _stretches(self._series.points):
            line = [(self._span.x(p.time), self.level(p.used or 0)) for p in stretch]
            base = self.y + PANEL
            around = joined([(line[0][0], base), *line, (line[-1][0], base)])
            yield f'<polygon class="used" points="{around}" fill="{colour}" fill-opacity="0.15"/>'
            yield (
                f'<polyline class="line" points="{joined(line)}" fill="none" stroke="{colour}" '
                'stroke-width="1.6" stroke-linejoin="round"/>'
            )
            for p in stretch:
                if p.peak is not None and p.peak > (p.used or 0) + self._top / 200:
                    x, low, high = self._span.x(p.time), self.level(p.used or 0), self.level(p.peak)
                    yield f'<path class="peak" d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{PEAK}" stroke-width="1.5"/>'

    def _gaps(self) -> Iterator[str]:
        points = self._series.points
        for i, p in enumerate(points):
            if p.used is None:
                start = self._span.x(points[i - 1].time if i else p.time)
                end = self._span.x(points[i + 1].time if i + 1 < len(points) else self._span.end)
                yield (
                    f'<rect class="gap" x="{start:.1f}" y="{self.y}" width="{max(end - start, 1.0):.1f}" '
                    f'height="{PANEL}" fill="{GAP}"/>'
                )


def _size(size: int) -> str:
    return f"{size / GB:.2f} GB" if size >= GB else f"{size / MB:.0f} MB"


def _stretches(points: Sequence[Point]) -> list[list[Point]]:
    """Split at the gaps."""
    found: list[list[Point]] = [[]]
    for p in points:
        if p.used is None:
            found.append([])
        else:
            found[-1].append(p)
    return [stretch for stretch in found if stretch]


def joined(line: Iterable[tuple[float, float]]) -> str:
    """Return points as SVG takes them."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
