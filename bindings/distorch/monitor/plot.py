# SPDX-License-Identifier: Apache-2.0
"""A timeline of memory as plain SVG: a panel for each device, prompts and marks above them. No library is needed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from html import escape

from distorch.monitor.recorder import Mark
from distorch.monitor.sample import PromptRun
from distorch.monitor.sinks import Point, Series, Timeline

_GB = 2**30
_WIDTH, _LEFT, _RIGHT = 1000, 64, 16  # pixels
_HEAD, _BAND, _PANEL, _SPACE, _FOOT = 40, 48, 130, 34, 30
_COLOURS = {
    "success": "#2e7d32",
    "error": "#c62828",
    "interrupted": "#b26a00",
    "running": "#546e7a",
}
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#263238}.small{font-size:11px;fill:#546e7a}"
    ".grid{stroke:#cfd8dc;stroke-width:1}.used{fill:#90caf9;stroke:none}"
    ".line{fill:none;stroke:#1565c0;stroke-width:1.5}.peak{stroke:#c62828;stroke-width:1.5}"
    ".gap{fill:#eceff1}.mark{stroke:#6a1b9a;stroke-width:1;stroke-dasharray:4 3}.name{fill:#6a1b9a}"
)


def render_svg(timeline: Timeline, title: str = "Memory over time") -> str:
    """Return the picture; one that says so when there is no sample."""
    series = [s for s in timeline.series() if any(p.used is not None for p in s.points)]
    bottom = _HEAD + _BAND + len(series) * (_PANEL + _SPACE)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + _FOOT}" '
        f'width="{_WIDTH}" height="{bottom + _FOOT}" role="img"><title>{_text(title)}</title>'
        f"<style>{_STYLE}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="{_LEFT}" y="24" style="font-size:16px">{_text(title)}</text>'
        f'<text class="small" x="{_WIDTH - _RIGHT}" y="24" text-anchor="end">'
        "blue: in use; red: peak between two samples; grey: no sample</text>"
    ]
    if not series:
        parts.append(f'<text x="{_LEFT}" y="{_HEAD + 14}">no samples</text></svg>\n')
        return "".join(parts)
    scale = _Scale(series)
    parts += _runs(timeline.runs(), scale)
    for number, one in enumerate(series):
        parts += _panel(one, scale, _HEAD + _BAND + number * (_PANEL + _SPACE))
    parts += _marks(timeline.marks(), scale, len(series))
    parts += _clocks(scale, bottom - _SPACE)
    parts.append("</svg>\n")
    return "".join(parts)


class _Scale:
    """From time to x."""

    def __init__(self, series: Sequence[Series]) -> None:
        times = [p.time for s in series for p in s.points]
        self.begin, self.end = min(times), max(times)
        self.span = max(self.end - self.begin, 1.0)

    def x(self, moment: float) -> float:
        share = min(max((moment - self.begin) / self.span, 0.0), 1.0)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _panel(series: Series, scale: _Scale, top: float) -> Iterable[str]:
    highest = max(max(p.used or 0, p.peak or 0) for p in series.points)
    full = series.total or highest or 1
    base = top + _PANEL

    def y(size: int) -> float:
        return base - min(size / full, 1.0) * _PANEL

    at = next(p for p in series.points if max(p.used or 0, p.peak or 0) == highest)
    told = f"peak {highest / _GB:.2f} GB at {_clock(at.time)}"
    told += f" of {full / _GB:.2f} GB" if series.total else ""
    name = f"{series.device}  {series.name}".strip()
    yield f'<text x="{_LEFT}" y="{top - 6:.0f}">{_text(name)}</text>'
    yield f'<text class="small" x="{_WIDTH - _RIGHT}" y="{top - 6:.0f}" text-anchor="end">{told}</text>'
    for x, width in _gaps(series.points, scale):
        yield f'<rect class="gap" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_PANEL}"/>'
    for size, label in _grid(full):
        yield (
            f'<path class="grid" d="M{_LEFT} {y(size):.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text class="small" x="{_LEFT - 6}" y="{y(size) + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for stretch in _stretches(series.points):
        path = _steps(stretch, scale, y)
        first, last = scale.x(stretch[0].time), scale.x(stretch[-1].time)
        yield f'<path class="used" d="M{first:.1f} {base}L{path}L{last:.1f} {base}Z"/>'
        yield f'<path class="line" d="M{path}"/>'
        for p in stretch:
            if p.peak is not None and p.peak > (p.used or 0) + full // 200:
                x = scale.x(p.time)
                yield f'<path class="peak" d="M{x:.1f} {y(p.used or 0):.1f}V{y(p.peak):.1f}"/>'


def _steps(points: Sequence[Point], scale: _Scale, y: object) -> str:
    assert callable(y)
    return " ".join(f"{scale.x(p.time):.1f} {y(p.used or 0):.1f}" for p in points)


def _stretches(points: Sequence[Point]) -> list[list[Point]]:
    """Split at the gaps."""
    found: list[list[Point]] = [[]]
    for p in points:
        if p.used is None:
            found.append([])
        else:
            found[-1].append(p)
    return [stretch for stretch in found if stretch]


def _gaps(points: Sequence[Point], scale: _Scale) -> Iterable[tuple[float, float]]:
    for i, p in enumerate(points):
        if p.used is None:
            start = scale.x(points[i - 1].time if i else p.time)
            end = scale.x(points[i + 1].time if i + 1 < len(points) else scale.end)
            yield start, max(end - start, 1.0)


def _grid(full: int) -> list[tuple[int, str]]:
    step = 2.0 ** math.floor(math.log2(max(full, 1) / 2))  # two to four lines
    unit, name = (_GB, "GB") if full >= _GB else (2**20, "MB")
    count = int(full / step)
    return [(int(i * step), f"{i * step / unit:g} {name}") for i in range(count + 1)]


def _runs(runs: Iterable[PromptRun], scale: _Scale) -> Iterable[str]:
    for run in runs:
        ended = run.ended if run.ended is not None else scale.end
        if ended < scale.begin or run.started > scale.end:
            continue
        x, end = scale.x(run.started), scale.x(ended)
        colour = _COLOURS.get(run.status, _COLOURS["running"])
        about = f"prompt {run.prompt}: {run.status}, {ended - run.started:.1f} s"
        yield (
            f'<rect x="{x:.1f}" y="{_HEAD}" width="{max(end - x, 1.5):.1f}" height="8" rx="2" '
            f'fill="{colour}"><title>{_text(about)}</title></rect>'
        )


def _marks(marks: Iterable[Mark], scale: _Scale, panels: int) -> Iterable[str]:
    tops = [_HEAD + _BAND + i * (_PANEL + _SPACE) for i in range(panels)]
    free_from = -math.inf  # labels that would overlap are left to their tooltips
    for mark in marks:
        if not scale.begin <= mark.time <= scale.end:
            continue
        x = scale.x(mark.time)
        lines = "".join(f"M{x:.1f} {top}v{_PANEL}" for top in tops)
        yield (
            f'<path class="mark" d="M{x:.1f} {_HEAD}v22{lines}">'
            f"<title>{_text(mark.label)} {_clock(mark.time)}</title></path>"
        )
        width = 7.0 * len(mark.label)
        if x >= free_from and x + width <= _WIDTH:
            yield (
                f'<text class="small name" x="{x + 3:.1f}" y="{_HEAD + 20}">'
                f"{_text(mark.label)}</text>"
            )
            free_from = x + width + 6


def _clocks(scale: _Scale, bottom: float) -> Iterable[str]:
    step = next((s for s in _STEPS if scale.span / s <= 10), math.ceil(scale.span / 10))
    offset = time.localtime(scale.begin).tm_gmtoff or 0
    moment = math.ceil((scale.begin + offset) / step) * step - offset
    while moment <= scale.end:
        x = scale.x(moment)
        yield (
            f'<path class="grid" d="M{x:.1f} {bottom:.0f}v5"/>'
            f'<text class="small" x="{x:.1f}" y="{bottom + 18:.0f}" text-anchor="middle">'
            f"{_clock(moment)}</text>"
        )
        moment += step


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))


def _text(text: str) -> str:
    return escape("".join(c if c.isprintable() else " " for c in text))
