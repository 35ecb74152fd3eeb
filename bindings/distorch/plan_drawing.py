# SPDX-License-Identifier: Apache-2.0
"""Draws plans (`plan_view`): as lines of text, two beside each other, and as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from distorch.allocation import format_bytes
from distorch.plan_view import PlanView, StepView
from distorch.text_table import aligned

# As the tab draws them (web/lib/colours.js): devices are cool, the host is grey.
COLOURS = ("#2f80ed", "#12a594", "#8b5cf6", "#4caf50", "#56c2f0", "#4656c9", "#7fd6b5", "#b9a5f5")
HOST = "#8c8c8c"
_MARKS = {"resident": "█", "migrated": "▓", "streamed": "░"}
_WIDTH = 64


def colour(device: str) -> str:
    """Return the colour of a device."""
    index = device.partition(":")[2]
    return HOST if device == "cpu" else COLOURS[int(index or 0) % len(COLOURS)]


def text(view: PlanView) -> str:
    """Return the strip in bytes, a row for each device, and the step: for a log, a node or a terminal."""
    lines = [_strip_text(view), f"{'█ resident  ▓ migrated  ░ streamed'}", ""]
    lines += _table(view)
    lines += ["", *step_lines(view), *(f"note: {note}" for note in view.notes)]
    return "\n".join(lines)


def _strip_text(view: PlanView) -> str:
    """Each mark is an equal part of the model's bytes, and the middle of it decides."""
    marks, at, stretches = [], 0, iter(view.strip)
    current = next(stretches, None)
    for i in range(_WIDTH):
        middle = (i + 0.5) * view.model_bytes / _WIDTH
        while current is not None and at + current.bytes < middle:
            at += current.bytes
            current = next(stretches, None)
        marks.append(_MARKS[current.how] if current is not None else " ")
    return "".join(marks)


def _table(view: PlanView) -> list[str]:
    rows = [("device", "cap", "weights", "slots", "how")]
    for row in view.devices:
        cap = "-" if row.cap is None else format_bytes(row.cap)
        rows.append(
            (row.device, cap, format_bytes(row.weights), format_bytes(row.slots), row.how or "-")
        )
    return aligned(rows, right=range(1, 4))


def step_lines(view: PlanView) -> list[str]:
    """Return what a step copies, how long it takes and what bounds it; or what is not known for that."""
    lines = [f"streamed in a step: {format_bytes(view.streamed_bytes)}"]
    lines += [
        f"  from {device}: {_milliseconds(seconds)}" for device, seconds in view.step.copies.items()
    ]
    lines.append(f"step: {step_text(view.step)}")
    return lines


def step_text(step: StepView) -> str:
    """Return "1030 ms, bound by the link from cpu", or what a prediction lacks."""
    if step.seconds is not None:
        bound = "computing" if step.bound == "compute" else f"the link from {step.bound}"
        return f"{_milliseconds(step.seconds)}, bound by {bound}"
    lacks = [
        "what a step computes (run two steps, or --step-seconds)"
        if one == "compute"
        else f"the speed of the link from {one} (distorch links)"
        for one in step.missing
    ]
    return "not known: it lacks " + ", ".join(lacks)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def comparison(views: Sequence[PlanView]) -> str:
    """Return the plans one above the other, and the figures by which they differ side by side."""
    parts = []
    for view in views:
        parts += [view.spec, _strip_text(view), ""]
    devices = list(dict.fromkeys(row.device for view in views for row in view.devices))
    rows = [["", *(f"({chr(97 + i)})" for i in range(len(views)))]]
    for device in devices:
        found = [next((r for r in v.devices if r.device == device), None) for v in views]
        rows.append([device, *(format_bytes(r.weights) if r else "-" for r in found)])
        if any(r and r.slots for r in found):
            rows.append(["  slots", *(format_bytes(r.slots) if r else "-" for r in found)])
    rows.append(["streamed", *(format_bytes(v.streamed_bytes) for v in views)])
    rows.append(["step", *(_short(v.step) for v in views)])
    rows.append(["bound by", *(v.step.bound for v in views)])
    table = aligned(rows, right=range(1, len(rows[0])))
    notes = [f"note ({chr(97 + i)}): {n}" for i, v in enumerate(views) for n in v.notes]
    return "\n".join([*parts, *table, *notes])


def _short(step: StepView) -> str:
    return "not known" if step.seconds is None else _milliseconds(step.seconds)


def svg(views: Sequence[PlanView], width: int = 720) -> str:
    """Return a picture of plans below each other, the strips in bytes; readable on light and dark."""
    top, parts = 0, []
    for view in views:
        drawn, height = _panel(view, width, top)
        parts.append(drawn)
        top += height + 18
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" '
        f'height="{top}" role="img" font-family="system-ui, sans-serif" font-size="12">\n'
        f"<style>text {{ fill: #333 }} @media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} }}</style>\n"
        '<defs><pattern id="streamed" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="2.5" height="6" fill="#fff" fill-opacity=".6"/></pattern></defs>\n'
        f"{body}\n</svg>\n"
    )


def _panel(view: PlanView, width: int, top: int) -> tuple[str, int]:
    lines = [
        f'<text x="0" y="{top + 13}" font-family="monospace" font-weight="600">{escape(view.spec)}</text>'
    ]
    x = 0.0
    for part in view.strip:
        size = width * part.bytes / max(1, view.model_bytes)
        place = f'x="{x:.2f}" y="{top + 21}" width="{size:.2f}" height="26"'
        title = escape(
            f"{part.blocks} blocks from {part.first}: {format_bytes(part.bytes)} on {part.device}, {part.how}"
        )
        lines.append(f'<rect {place} fill="{colour(part.device)}"><title>{title}</title></rect>')
        if part.how == "streamed":
            lines.append(f'<rect {place} fill="url(#streamed)" pointer-events="none"/>')
        x += size
    y = top + 66
    for row in view.devices:
        cap = "no cap" if row.cap is None else f"cap {format_bytes(row.cap)}"
        words = f"{row.device}   {cap} · weights {format_bytes(row.weights)} · slots {format_bytes(row.slots)}"
        words += f" · {row.how}" if row.how else ""
        lines.append(
            f'<rect x="0" y="{y - 10}" width="11" height="11" rx="2" fill="{colour(row.device)}"/>'
        )
        lines.append(f'<text x="18" y="{y}">{escape(words)}</text>')
        y += 18
    for line in [*step_lines(view), *(f"note: {n}" for n in view.notes)]:
        lines.append(f'<text x="0" y="{y}">{escape(line)}</text>')
        y += 16
    return "\n".join(lines), y - top
