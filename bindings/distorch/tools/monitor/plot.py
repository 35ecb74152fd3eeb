# SPDX-License-Identifier: Apache-2.0
"""The picture of `distorch monitor`: a panel for each device, prompts and marks above them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from distorch.tools.monitor import chart
from distorch.tools.monitor.chart import PANEL, SPACE, WIDTH, Panel, Span
from distorch.tools.monitor.lines import clock
from distorch.tools.monitor.recorder import Mark
from distorch.tools.monitor.sample import PromptRun
from distorch.tools.monitor.sinks import Timeline

_HEAD, _TOP = 62, 118  # where prompts are, and the first panel
_COLOURS = {
    "success": "#2e7d32",
    "error": "#c62828",
    "interrupted": "#b26a00",
    "running": "#546e7a",
}
_MARK = "#6a1b9a"


def render_svg(timeline: Timeline, title: str = "Memory over time") -> str:
    """Return the picture; one that says so when there is no sample."""
    series = [s for s in timeline.series() if any(p.used is not None for p in s.points)]
    height = _TOP + max(len(series), 1) * (PANEL + SPACE)
    parts = [
        chart.text(chart.LEFT, 30, title, size=17, colour=chart.INK, bold=True),
        chart.text(chart.LEFT, 50, "blue: in use; red: peak between two samples; grey: no sample"),
    ]
    if not series:
        parts.append(chart.text(chart.LEFT, _TOP, "no samples", size=13))
        return chart.document(height, title, parts)
    times = [p.time for s in series for p in s.points]
    span = Span(min(times), max(times))
    parts += _runs(timeline.runs(), span)
    for number, one in enumerate(series):
        most = max(chart.highest(p) for p in one.points)
        scale = chart.scale_of_device(one.total or most)
        panel = Panel(_TOP + number * (PANEL + SPACE), span, one, scale)
        parts += [*panel.axes(span.clocks()), *panel.memory(), *panel.heading()]
    parts += _marks(timeline.marks(), span, len(series))
    return chart.document(height, title, parts)


def _runs(runs: Iterable[PromptRun], span: Span) -> Iterator[str]:
    for run in runs:
        ended = run.ended if run.ended is not None else span.end
        if ended < span.begin or run.started > span.end:
            continue
        x, end = span.x(run.started), span.x(ended)
        colour = _COLOURS.get(run.status, _COLOURS["running"])
        about = f"prompt {run.prompt}: {run.status}, {ended - run.started:.1f} s"
        yield (
            f'<rect x="{x:.1f}" y="{_HEAD}" width="{max(end - x, 1.5):.1f}" height="8" rx="2" '
            f'fill="{colour}"><title>{chart.clean(about)}</title></rect>'
        )


def _marks(marks: Iterable[Mark], span: Span, panels: int) -> Iterator[str]:
    tops = [_TOP + i * (PANEL + SPACE) for i in range(panels)]
    free_from = -math.inf  # labels that would overlap are left to their tooltips
    for mark in marks:
        if not span.begin <= mark.time <= span.end:
            continue
        x = span.x(mark.time)
        lines = "".join(f"M{x:.1f} {top}v{PANEL}" for top in tops)
        yield (
            f'<path class="mark" d="M{x:.1f} {_HEAD}v24{lines}" stroke="{_MARK}" stroke-dasharray="4 3">'
            f"<title>{chart.clean(mark.label)} {clock(mark.time)}</title></path>"
        )
        width = 7.0 * len(mark.label)
        if x >= free_from and x + width <= WIDTH:
            yield chart.text(x + 3, _HEAD + 24, mark.label, colour=_MARK)
            free_from = x + width + 6
