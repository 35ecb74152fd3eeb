# SPDX-License-Identifier: Apache-2.0
"""The timeline as SVG: a panel for each device, a band for each scene, a dot for memory at rest, the trend through them."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from html import escape

from distorch.e2e.results import RunResult, SceneResult
from distorch.monitor.sinks import Point, Series, Timeline

MB = 2**20
_WIDTH, _LEFT, _RIGHT, _TOP = 1100, 84, 20, 106
_PANEL, _SPACE = 170, 46
_INNER = _WIDTH - _LEFT - _RIGHT
_FONT = 'font-family="DejaVu Sans, Arial, sans-serif"'
_LINES = ("#3b6fb6", "#4f9a5b", "#8d5fb0", "#2f8f9d", "#a08a2c", "#6b7280")
_INK, _SOFT, _GRID, _BAND, _BAD, _REST = (
    "#1f2937", "#6b7280", "#e5e7eb", "#f1f5f9", "#fde2e1", "#c2410c",
)  # fmt: skip


def svg(result: RunResult, timeline: Timeline) -> str:
    """Return the picture; without any sample it says so."""
    panels = [s for s in timeline.series() if any(p.used is not None for p in s.points)]
    height = _TOP + max(len(panels), 1) * (_PANEL + _SPACE) + 20
    start, end = result.started, max(result.ended, result.started + 1)
    when = datetime.datetime.fromtimestamp(start).strftime("%Y-%m-%d %H:%M:%S")
    good = sum(s.good for s in result.scenes)
    parts = [
        _text(_LEFT, 30, "Memory over the run, by device", 17, weight="bold"),
        _text(_LEFT, 50, f"{result.url}, from {when}: {good} of {len(result.scenes)} scenes succeeded", 12, _SOFT),
        *_legend(72),
    ]  # fmt: skip
    if not panels:
        parts.append(_text(_LEFT, _TOP + 40, "No sample was taken.", 13))
    for i, found in enumerate(panels):
        colour = _LINES[i % len(_LINES)]
        parts += _Panel(_TOP + i * (_PANEL + _SPACE), (start, end), found, colour, result).draw()
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Memory over the run, by device">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


class _Panel:
    """One device. Pixels grow downwards from `y`."""

    def __init__(
        self, y: float, span: tuple[float, float], series: Series, colour: str, result: RunResult
    ) -> None:
        self._y, self._colour, self._result = y, colour, result
        self._start, self._end = span
        self._series, self._device = series, series.device
        self._peak = max(_most(p) for p in series.points if p.used is not None)
        rests = [s.rest[self._device] for s in result.scenes if self._device in s.rest]
        self._step, self._top = _scale(max([self._peak, MB, *rests]))

    def draw(self) -> list[str]:
        title = self._device
        if self._series.name and self._series.name != self._device:
            title += f"  {self._series.name}"
        peak = f"peak {self._peak / MB:.0f} MB"
        if self._series.total:
            peak += f" of {self._series.total / MB:.0f} MB"
        words, colour = self._verdict()
        return [
            *self._scenes(self._result.scenes),
            *self._axes(),
            *self._levels(),
            *self._rests(),
            _text(_LEFT, self._y - 7, title, 13, weight="bold"),
            _text(_WIDTH - _RIGHT - 230, self._y - 7, peak, 12, _SOFT, "end"),
            _text(_WIDTH - _RIGHT, self._y - 7, words, 12, colour, "end", "bold"),
        ]

    def _x(self, moment: float) -> float:
        share = (moment - self._start) / (self._end - self._start)
        return _LEFT + min(max(share, 0.0), 1.0) * _INNER

    def _level(self, used: float) -> float:
        return self._y + _PANEL * (1 - used / self._top)

    def _scenes(self, scenes: Sequence[SceneResult]) -> list[str]:
        """A band for each scene; its number below where there is room."""
        parts, last = [], -math.inf
        for scene in scenes:
            if not scene.ended:
                continue
            a, b = self._x(scene.queued), self._x(scene.ended)
            fill = _BAND if scene.good and scene.figures_hold else _BAD
            about = escape(f"scene {scene.number}: {scene.name}, {scene.outcome.status.value}")
            parts.append(
                f'<rect x="{a:.1f}" y="{self._y}" width="{max(b - a, 1):.1f}" height="{_PANEL}" '
                f'fill="{fill}"><title>{about}</title></rect>'
            )
            middle = (a + b) / 2
            if middle - last >= 22:
                parts.append(_text(middle, self._y + 12, str(scene.number), 10, _SOFT, "middle"))
                last = middle
        return parts

    def _axes(self) -> list[str]:
        parts = []
        unit, size = ("GB", 2**30) if self._top >= 4 * 2**30 else ("MB", MB)
        for i in range(round(self._top / self._step) + 1):
            y = self._level(i * self._step)
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_GRID}"/>')
            parts.append(
                _text(_LEFT - 8, y + 4, f"{i * self._step / size:g} {unit}", 11, _SOFT, "end")
            )
        for seconds in _ticks(self._end - self._start):
            x = self._x(self._start + seconds)
            parts.append(f'<path d="M{x:.1f} {self._y + _PANEL}v4" stroke="{_SOFT}"/>')
            parts.append(_text(x, self._y + _PANEL + 16, _clock(seconds), 10, _SOFT, "middle"))
        return parts

    def _levels(self) -> list[str]:
        """The line of the most, an area below it; broken where samples are missing."""
        parts = []
        bottom = self._y + _PANEL
        for run in _unbroken(self._series.points):
            line = [(self._x(p.time), self._level(_most(p))) for p in run]
            around = [(line[0][0], bottom), *line, (line[-1][0], bottom)]
            parts.append(
                f'<polygon points="{_joined(around)}" fill="{self._colour}" fill-opacity="0.12"/>'
            )
            parts.append(
                f'<polyline points="{_joined(line)}" fill="none" stroke="{self._colour}" '
                'stroke-width="1.6" stroke-linejoin="round"/>'
            )
        return parts

    def _rests(self) -> list[str]:
        points = [
            (self._x(s.rested), self._level(s.rest[self._device]), s.rest[self._device])
            for s in self._result.scenes
            if self._device in s.rest
        ]
        parts = [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="#ffffff" stroke="{_REST}" stroke-width="1.5">'
            f"<title>at rest: {used / MB:.1f} MB</title></circle>"
            for x, y, used in points
        ]
        if self._verdict()[1] == _REST and len(points) >= 2:
            line = _joined([(x, y) for x, y, _ in points])
            dashes = f'stroke="{_REST}" stroke-dasharray="5 3"'
            parts.insert(0, f'<polyline points="{line}" fill="none" {dashes}/>')
        return parts

    def _verdict(self) -> tuple[str, str]:
        """Return (what the memory at rest did, the colour to say it in)."""
        found = next((d for d in self._result.drift if d.device == self._device), None)
        if found is None or found.scenes < 2:
            return "", _SOFT
        return f"{found.verdict}: {found.slope / MB:+.2f} MB/scene", _REST if found.leaks else _SOFT


def _legend(y: float) -> list[str]:
    return [
        f'<rect x="{_LEFT}" y="{y - 9}" width="14" height="10" fill="{_BAND}" stroke="{_GRID}"/>',
        _text(_LEFT + 20, y, "a scene", 11, _SOFT),
        f'<rect x="{_LEFT + 80}" y="{y - 9}" width="14" height="10" fill="{_BAD}"/>',
        _text(_LEFT + 100, y, "one that failed, or came from the cache", 11, _SOFT),
        f'<circle cx="{_LEFT + 357}" cy="{y - 4}" r="3.2" fill="#ffffff" stroke="{_REST}" stroke-width="1.5"/>',
        _text(_LEFT + 366, y, "at rest after a scene", 11, _SOFT),
    ]


def _unbroken(points: Sequence[Point]) -> list[list[Point]]:
    """Cut where samples are missing."""
    found: list[list[Point]] = [[]]
    for point in points:
        if point.used is not None:
            found[-1].append(point)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def _most(point: Point) -> int:
    return max(point.used or 0, point.peak or 0)


def _joined(line: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in line)


def _scale(most: float) -> tuple[float, float]:
    """Return (step, top) of an axis with three to six steps that are round in MB or GB."""
    unit = 2**30 if most >= 4 * 2**30 else MB
    rough = most / unit / 4
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m for m in (1, 2, 5, 10) if m * magnitude >= rough) * magnitude * unit
    return step, step * math.ceil(most / step)


def _ticks(seconds: float) -> list[float]:
    steps = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((s for s in steps if seconds / s <= 10), steps[-1])
    return [float(i * step) for i in range(int(seconds / step) + 1)]


def _clock(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _text(
    x: float, y: float, words: str, size: int, colour: str = _INK, anchor: str = "start", weight: str = "normal"
) -> str:  # fmt: skip
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" {_FONT} font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="{colour}">{escape(words)}</text>'
    )
