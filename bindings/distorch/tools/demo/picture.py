# SPDX-License-Identifier: Apache-2.0
"""Draws a placement as SVG: the blocks in the order of the model, coloured by device, and a bar for each device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#3b6fb6", "#d1782c", "#4f9a5b", "#8d5fb0", "#b64a5a", "#2f8f9d", "#a08a2c", "#6b7280")
_WIDTH = 960
_MARGIN = 24
_FONT = 'font-family="DejaVu Sans, Arial, sans-serif"'


def colours(devices: Sequence[str]) -> dict[str, str]:
    """Give each device a colour; those beyond the eighth share."""
    return {device: _COLOURS[i % len(_COLOURS)] for i, device in enumerate(devices)}


def _text(
    x: float, y: float, text: str, size: int = 13, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" {_FONT} font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="#1f2937">{escape(text)}</text>'
    )


def placement_svg(
    title: str,
    blocks: Sequence[tuple[str, int, str]],
    capacities: Mapping[str, int],
) -> str:
    """Return the picture as SVG text.

    Args:
        title: stands above.
        blocks: (name, bytes, device) in the order of the model.
        capacities: bytes that each device may take, in the order in which the bars are drawn; 0 draws no limit.
    """
    colour = colours(list(capacities))
    total = sum(size for _, size, _ in blocks) or 1
    inner = _WIDTH - 2 * _MARGIN
    parts = [_text(_MARGIN, 34, title, 17, weight="bold")]
    parts.append(_text(_MARGIN, 62, "Blocks in the order of the model, as wide as their bytes", 12))
    x = float(_MARGIN)
    for name, size, device in blocks:
        width = size / total * inner
        parts.append(
            f'<rect x="{x:.2f}" y="72" width="{max(width, 0.3):.2f}" height="56" fill="{colour[device]}" '
            f'stroke="#ffffff" stroke-width="0.4"><title>{escape(name)}: {size / 2**20:.2f} MB on '
            f"{escape(device)}</title></rect>"
        )
        x += width
    used = {d: sum(s for _, s, e in blocks if e == d) for d in capacities}
    scale = max([*used.values(), *capacities.values()]) or 1
    y = 164
    bar = inner - 330
    for device, capacity in capacities.items():
        count = sum(1 for _, _, d in blocks if d == device)
        parts.append(_text(_MARGIN, y + 15, device, 13, weight="bold"))
        parts.append(
            f'<rect x="{_MARGIN + 80}" y="{y}" width="{used[device] / scale * bar:.1f}" height="20" '
            f'fill="{colour[device]}"/>'
        )
        if capacity:
            parts.append(
                f'<rect x="{_MARGIN + 80}" y="{y}" width="{capacity / scale * bar:.1f}" height="20" '
                'fill="none" stroke="#1f2937" stroke-dasharray="4 3"/>'
            )
        limit = f" of {capacity / 2**20:.1f}" if capacity else ""
        label = f"{used[device] / 2**20:.1f}{limit} MB, {count} blocks"
        parts.append(_text(_WIDTH - _MARGIN, y + 15, label, 13, "end"))
        y += 34
    parts.append(_text(_MARGIN, y + 14, "Dashed: the most that the device may take.", 11))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 32}" '
        f'viewBox="0 0 {_WIDTH} {y + 32}" role="img" aria-label="{escape(title)}">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )
