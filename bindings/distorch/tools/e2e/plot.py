# SPDX-License-Identifier: Apache-2.0
"""The picture of `distorch e2e`: a panel for each device, a band for each scene, a dot for memory at rest, the trend."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Sequence

from distorch.tools.e2e.results import RunResult, SceneResult
from distorch.tools.monitor import chart
from distorch.tools.monitor.chart import LEFT, MB, PANEL, RIGHT, SPACE, WIDTH, Panel, Span
from distorch.tools.monitor.sinks import Series, Timeline

_TOP = 106
_LABEL = "Memory over the run, by device"
_VERDICT = 240  # pixels
_LINES = ("#3b6fb6", "#4f9a5b", "#8d5fb0", "#2f8f9d", "#a08a2c", "#6b7280")
_BAND, _BAD, _REST = "#f1f5f9", "#fde2e1", "#c2410c"


def svg(result: RunResult, timeline: Timeline) -> str:
    """Return the picture; without any sample it says so."""
    panels = [s for s in timeline.series() if any(p.used is not None for p in s.points)]
    span = Span(result.started, result.ended)
    when = datetime.datetime.fromtimestamp(result.started).strftime("%Y-%m-%d %H:%M:%S")
    good = sum(s.good for s in result.scenes)
    about = f"{result.url}, from {when}: {good} of {len(result.scenes)} scenes succeeded"
    parts = [
        chart.text(LEFT, 30, _LABEL, size=17, colour=chart.INK, bold=True),
        chart.text(LEFT, 50, about, size=12),
        *_legend(72),
    ]
    if not panels:
        parts.append(chart.text(LEFT, _TOP + 40, "No sample was taken.", size=13))
    for i, found in enumerate(panels):
        y, colour = _TOP + i * (PANEL + SPACE), _LINES[i % len(_LINES)]
        parts += _panel(y, span, found, result, colour)
    height = _TOP + max(len(panels), 1) * (PANEL + SPACE)
    return chart.document(height, _LABEL, parts)


def _panel(y: float, span: Span, series: Series, result: RunResult, colour: str) -> Iterator[str]:
    rests = [(s.rested, s.rest[series.device]) for s in result.scenes if series.device in s.rest]
    peak = max(chart.highest(p) for p in series.points if p.used is not None)
    panel = Panel(y, span, series, chart.scale_of_data(max([peak, MB, *(r for _, r in rests)])))
    words, loud = _verdict(result, series.device)
    yield from _bands(y, span, result.scenes)
    yield from panel.axes(span.elapsed())
    yield from panel.memory(colour)
    yield from _numbers(y, span, result.scenes)
    yield from _rests(panel, span, rests, trend=loud)
    yield from panel.heading(room=_VERDICT)
    tone = _REST if loud else chart.SOFT
    yield chart.text(WIDTH - RIGHT, y - 7, words, size=12, colour=tone, anchor="end", bold=True)


def _bands(y: float, span: Span, scenes: Sequence[SceneResult]) -> Iterator[str]:
    for scene in scenes:
        if not scene.ended:
            continue
        a, b = span.x(scene.queued), span.x(scene.ended)
        fill = _BAND if scene.good and scene.figures_hold else _BAD
        about = chart.clean(f"scene {scene.number}: {scene.name}, {scene.outcome.status.value}")
        yield (
            f'<rect x="{a:.1f}" y="{y}" width="{max(b - a, 1):.1f}" height="{PANEL}" '
            f'fill="{fill}"><title>{about}</title></rect>'
        )


def _numbers(y: float, span: Span, scenes: Sequence[SceneResult]) -> Iterator[str]:
    """The scenes' numbers, where there is room."""
    last = -math.inf
    for scene in scenes:
        middle = (span.x(scene.queued) + span.x(scene.ended)) / 2
        if scene.ended and middle - last >= 22:
            yield chart.text(middle, y + 12, str(scene.number), size=10, anchor="middle")
            last = middle


def _rests(
    panel: Panel, span: Span, rests: Sequence[tuple[float, int]], trend: bool
) -> Iterator[str]:
    if trend and len(rests) >= 2:
        line = chart.joined((span.x(at), panel.level(used)) for at, used in rests)
        yield f'<polyline points="{line}" fill="none" stroke="{_REST}" stroke-dasharray="5 3"/>'
    for at, used in rests:
        yield _dot(span.x(at), panel.level(used), f"<title>at rest: {used / MB:.1f} MB</title>")


def _dot(x: float, y: float, inner: str = "") -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="#ffffff" stroke="{_REST}" stroke-width="1.5">'
        f"{inner}</circle>"
    )


def _verdict(result: RunResult, device: str) -> tuple[str, bool]:
    """Return (what the memory at rest did, whether to shout it)."""
    found = next((d for d in result.drift if d.device == device), None)
    if found is None or found.scenes < 2:
        return "", False
    return f"{found.verdict}: {found.slope / MB:+.2f} MB/scene", found.leaks


def _legend(y: float) -> list[str]:
    def box(x: float, fill: str) -> str:
        size = 'width="14" height="10"'
        return f'<rect x="{x:.0f}" y="{y - 9:.0f}" {size} fill="{fill}" stroke="{chart.GRID}"/>'

    return [
        box(LEFT, _BAND),
        chart.text(LEFT + 20, y, "a scene"),
        box(LEFT + 80, _BAD),
        chart.text(LEFT + 100, y, "one that failed, or came from the cache"),
        _dot(LEFT + 357, y - 4),
        chart.text(LEFT + 366, y, "at rest after a scene"),
        f'<path d="M{LEFT + 506} {y + 1}v-10" stroke="{chart.PEAK}" stroke-width="1.5"/>',
        chart.text(LEFT + 514, y, "peak between two samples"),
        box(LEFT + 676, chart.GAP),
        chart.text(LEFT + 696, y, "no sample"),
    ]
