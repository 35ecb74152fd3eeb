# SPDX-License-Identifier: Apache-2.0
"""Durations, sizes and addresses on the command line; for argparse's `type`."""

from __future__ import annotations

import argparse
import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30}


def duration(text: str) -> float:
    """Return the seconds of "90", "10m", "1h30m", "500ms". Raises ArgumentTypeError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd]?)", text.strip().lower())
    seconds = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
    if (
        not parts
        or "".join(n + u for n, u in parts) != text.strip().lower()
        or not 0 < seconds < 1e9
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration; expected one such as 90s, 10m, 1h30m"
        )
    return seconds


def size(text: str) -> int:
    """Return the bytes of "10MB", "1gb", "0". Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?b?)", text.strip().lower())
    unit = match.group(2) if match else ""
    unit = unit + "b" if unit in ("k", "m", "g") else unit
    if match is None or len(match.group(1)) > 15:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected one such as 64MB")
    return int(match.group(1)) * _SIZES[unit]


def address(text: str) -> tuple[str, int]:
    """Return (host, port) of "9100" or "0.0.0.0:9100"."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; expected 9100 or 0.0.0.0:9100")
    return host.strip("[]") or "127.0.0.1", int(port)
