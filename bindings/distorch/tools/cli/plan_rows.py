# SPDX-License-Identifier: Apache-2.0
"""The rows of the JSON that `distorch plan` reads: --blocks and --devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distorch import allocation


def _text(row: Mapping[str, Any], key: str, *, required: bool = False) -> str:
    value = row.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise ValueError(f'"{key}" must be a string')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f'"{key}" has half of a surrogate pair in it: {value!a}') from None
    return value


def _flag(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f'"{key}" must be true or false')
    return bool(value)


def _size(row: Mapping[str, Any], key: str, *, required: bool = False) -> int:
    value = row.get(key)
    if value is None and not required:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f'"{key}" must be a number of bytes, 0 or more')
    return value


def _known_size(row: Mapping[str, Any], key: str) -> int | None:
    return None if row.get(key) is None else _size(row, key)


def block(row: Mapping[str, Any]) -> allocation.Block:
    """Make a block of a row; ValueError says which of its values is wrong."""
    pinned = row.get("pinned")
    if pinned is not None and not isinstance(pinned, (bool, str)):
        raise ValueError('"pinned" must be true, false or the reason as a string')
    reason = "pinned" if pinned is True else "" if pinned is False else _text(row, "pinned")
    return allocation.Block(
        _text(row, "name", required=True),
        _size(row, "bytes", required=True),
        group=_text(row, "group"),
        pinned=reason,
        tied=_text(row, "tied"),
        patched=_flag(row, "patched"),
    )


def device(row: Mapping[str, Any]) -> allocation.Device:
    """Make a device of a row; ValueError says which of its values is wrong."""
    link = row.get("link_gbps")
    link = 0.0 if link is None else link
    if isinstance(link, bool) or not isinstance(link, (int, float)) or not 0 <= link < 1e15:
        raise ValueError('"link_gbps" must be a number of GB/s, 0 or more')
    return allocation.Device(
        _text(row, "device", required=True),
        total=_known_size(row, "total"),
        free=_known_size(row, "free"),
        reserve=_size(row, "reserve"),
        link_gbps=float(link),
    )
