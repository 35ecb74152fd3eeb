# SPDX-License-Identifier: Apache-2.0
"""What the scan says at DEBUG: modules and models found, the models of each device, what made it look anew."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from distorch.memory.row import Row
from distorch.printable import logger

_log = logger("distorch.memory")

MEGABYTE = 2**20
_MOST = 10  # models of a device that are listed


def told_models(rows: Sequence[Row]) -> None:
    """Say what a scan that found something new has found."""
    if not _log.isEnabledFor(logging.DEBUG):
        return
    modules = sum(row.modules for row in rows)
    by_device: dict[str, list[Row]] = {}
    for row in rows:
        for device in row.bytes:
            by_device.setdefault(device, []).append(row)
    gpus = sum(device != "cpu" for device in by_device)
    _log.debug("Found %d modules, %d top-level parents", modules, len(rows))
    _log.debug("Grouped into %d parent models across %d GPU(s)", len(rows), gpus)
    for device, there in sorted(by_device.items()):
        there.sort(key=lambda row: -row.bytes[device])
        _log.debug("%s: %d models", device, len(there))
        for row in there[:_MOST]:
            size = round(row.bytes[device] / MEGABYTE)
            _log.debug("  - %s (%s): %d MB, %d layers", row.name, row.type, size, row.layers)
        if len(there) > _MOST:
            _log.debug("  and %d more", len(there) - _MOST)


def told_files(files: Iterable[tuple[str, bool]]) -> None:
    """Say which files a node is about to load, and whether their metadata could be read."""
    for file, readable in files:
        _log.debug("Captured model: %s (metadata: %s)", file, readable)


def told_change(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Say that a node changed memory so much that the models are looked at anew."""
    if _log.isEnabledFor(logging.DEBUG):
        largest = max(
            (abs(after.get(d, 0) - before.get(d, 0)), d) for d in {*before, *after, "cpu"}
        )
        _log.debug(
            "Significant change of memory (%.1f MB on %s): the models are looked at anew",
            largest[0] / MEGABYTE,
            largest[1],
        )
