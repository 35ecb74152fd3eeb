# SPDX-License-Identifier: Apache-2.0
"""Draws the table of bench/gpu/run.py as an SVG: a group of bars for each case, a line where the bound is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

COLOURS = {
    "resident": "#7f8c8d",
    "streamed": "#1f77b4",
    "per_leaf": "#d62728",
    "accelerate": "#ff7f0e",
    "diffusers": "#2ca02c",
    "comfy": "#9467bd",
}
LABELS = {
    "resident": "resident",
    "streamed": "DisTorch, streamed",
    "per_leaf": "leaf by leaf",
    "accelerate": "accelerate",
    "diffusers": "diffusers, groups",
    "comfy": "ComfyUI, its own cast",
}
_LEFT, _TOP, _HEIGHT, _BAR, _GAP, _FOOT = 70, 60, 300, 22, 34, 70


def svg(title: str, cases: Sequence[Mapping[str, Any]], unit: str) -> str:
    """Return the picture.

    Args:
        title: what and on what.
        cases: each with "label", "values" (by way; None where there is none), and "bound" (or None).
        unit: of all values.
    """
    ways = [way for way in COLOURS if any(way in case["values"] for case in cases)]
    highest = max(
        [v for case in cases for v in [*case["values"].values(), case["bound"]] if v] or [1.0]
    )
    group = len(ways) * _BAR + _GAP
    width = max(_LEFT + group * len(cases) + 20, 620)
    parts = [_head(width, title, unit), *_axis(width, highest)]
    for index, case in enumerate(cases):
        parts += _case(_LEFT + _GAP // 2 + index * group, case, ways, highest)
    parts += _legend(ways)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _y(value: float, highest: float) -> float:
    return _TOP + _HEIGHT * (1 - value / highest)


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _head(width: int, title: str, unit: str) -> str:
    height = _TOP + _HEIGHT + _FOOT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        + _text(_LEFT, 20, title, size=14)
        + "\n"
        + _text(8, _TOP - 8, unit)
    )


def _axis(width: int, highest: float) -> list[str]:
    lines = []
    for step in range(5):
        value = highest * step / 4
        y = _y(value, highest)
        lines.append(f'<line x1="{_LEFT}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')  # fmt: skip
        lines.append(_text(_LEFT - 6, y + 4, f"{value:.3g}", "end"))
    return lines


def _case(x: float, case: Mapping[str, Any], ways: Sequence[str], highest: float) -> list[str]:
    parts = []
    for index, way in enumerate(ways):
        value = case["values"].get(way)
        if value is None:
            continue
        y = _y(value, highest)
        parts.append(
            f'<rect x="{x + index * _BAR:.1f}" y="{y:.1f}" width="{_BAR - 3}" '
            f'height="{_TOP + _HEIGHT - y:.1f}" fill="{COLOURS[way]}">'
            f"<title>{escape(LABELS[way])}: {value:.4g}</title></rect>"
        )
    end = x + len(ways) * _BAR
    if case["bound"]:
        y = _y(case["bound"], highest)
        parts.append(
            f'<line x1="{x - 4:.1f}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="black" stroke-width="2" stroke-dasharray="4 2">'
            f"<title>bound: {case['bound']:.4g}</title></line>"
        )
    for line, text in enumerate(str(case["label"]).split("\n")):
        parts.append(_text((x + end) / 2, _TOP + _HEIGHT + 18 + 15 * line, text, "middle", 11))
    return parts


def _legend(ways: Sequence[str]) -> list[str]:
    parts = []
    for index, way in enumerate(ways):
        x = _LEFT + index * 140
        parts.append(f'<rect x="{x}" y="30" width="12" height="12" fill="{COLOURS[way]}"/>')
        parts.append(_text(x + 17, 40, LABELS[way]))
    return parts
